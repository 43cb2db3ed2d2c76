"""A guest that stands still while drgn looks at it, for so long and no longer, whatever drgn does meanwhile."""

from __future__ import annotations

import signal
from contextlib import ExitStack
from typing import TYPE_CHECKING

from sevkvm.cli.run import warn

if TYPE_CHECKING:
    from types import FrameType, TracebackType

    from sevkvm.drgnprog.memory import ProgramMemory
    from sevkvm.guest import Guest


class BoundedHold:
    """Holds it from entering on, until ``seconds`` are over or the end; None never holds it.

    An alarm ends it: a prompt that nobody types at reads no memory that could look at the clock.
    """

    def __init__(self, guest: Guest, memory: ProgramMemory, seconds: float | None) -> None:
        self._guest = guest
        self._memory = memory
        self._seconds = seconds
        self._hold = ExitStack()

    def __enter__(self) -> BoundedHold:
        if self._guest.pid is None:  # a dump
            self._memory.still = True
        elif self._seconds is not None:
            self._hold.callback(signal.signal, signal.SIGALRM, signal.signal(signal.SIGALRM, self._ring))
            self._hold.callback(signal.setitimer, signal.ITIMER_REAL, 0)
            self._hold.enter_context(self._guest.held())
            self._memory.still = True
            self._hold.callback(setattr, self._memory, "still", False)
            signal.setitimer(signal.ITIMER_REAL, self._seconds)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hold.close()

    def _ring(self, signum: int, frame: FrameType | None) -> None:
        self._memory.soon(self._let_go)

    def _let_go(self) -> None:
        self._hold.close()
        warn(f"the guest had stood still for {self._seconds:g} s (--hold): it runs on, and memory changes")
