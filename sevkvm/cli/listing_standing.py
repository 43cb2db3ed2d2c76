"""A guest that stands still while its page tables are read, but not for longer than it can bear."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from sevkvm.guest import Guest

SLOW_READER = "nobody took the output fast enough"


class Standing:
    """A TableReader that holds the guest from entering on until ``seconds`` are over, or until ``let_go``.

    ``seconds`` None never holds it. ``reason``: why it was let go before the end, or None. ``since``: the gva from
    which on the list was made of a guest that ran; None while that is nowhere.
    """

    def __init__(self, guest: Guest, seconds: float | None) -> None:
        self._guest = guest
        self._seconds = seconds
        self._hold = ExitStack()
        self._deadline: float | None = None
        self.reason: str | None = None
        self.since: int | None = None

    def __enter__(self) -> Standing:
        if self._seconds is not None:
            self._hold.enter_context(self._guest.held())
            self._deadline = time.monotonic() + self._seconds
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hold.close()

    def read_tables(self, gpas: Sequence[int], *, keep: bool = True) -> Sequence[bytes | None]:
        """As GuestMemory's; time is looked at before each batch."""
        self.check()
        return self._guest.memory.read_tables(gpas, keep=keep)

    def check(self) -> None:
        """Let the guest go if it has stood still for long enough."""
        if self._deadline is not None and time.monotonic() >= self._deadline:
            self.let_go(f"it had stood still for {self._seconds:g} s (--hold)")

    def let_go(self, reason: str) -> None:
        """Let the guest run from now on; nothing happens if it does so already."""
        if self._deadline is not None:
            self._deadline = None
            self.reason = reason
            self._hold.close()

    def mark(self, gva: int | None) -> None:
        """What is listed next starts at ``gva``, if it is anywhere."""
        if gva is not None and self.reason is not None and self.since is None:
            self.since = gva
