"""SIGINT, SIGTERM and SIGHUP unwind every ``with`` on the way out, so that the VMM is left as it was found."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_armed: set[int] = set()  # those that raise Interrupted, or did before the first of them came


class Interrupted(KeyboardInterrupt):
    """Raised in the main thread by the first of our signals.

    A KeyboardInterrupt, because asyncio lets that class pass where it would log and drop another.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum

    @property
    def exit_status(self) -> int:
        """128 + the signal, as shells report it: 130 for SIGINT, 143 for SIGTERM, 129 for SIGHUP."""
        return 128 + self.signum


def _interrupt(signum: int, frame: FrameType | None) -> None:
    # A second signal must not cut the unwinding short: that would leave something behind in the VMM.
    # The unwinding is bounded by the timeouts of what it does.
    for other in _SIGNALS:
        signal.signal(other, signal.SIG_IGN)
    raise Interrupted(signum)


@contextmanager
def unwinding_signals() -> Iterator[None]:
    """Turn the signals into Interrupted; one that our parent had ignored (nohup) stays ignored."""
    previous = {signum: signal.getsignal(signum) for signum in _SIGNALS}
    for signum, handler in previous.items():
        if handler is not signal.SIG_IGN:
            signal.signal(signum, _interrupt)
            _armed.add(signum)
    try:
        yield
    finally:
        _armed.clear()
        for signum, handler in previous.items():
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)


def rearm() -> None:
    """After an Interrupted that was no reason to end: the next signal is heard again."""
    for signum in _armed:
        signal.signal(signum, _interrupt)


class Deferral:
    """From ``start`` to ``end`` a signal only leaves a note; ``end`` raises what it would have raised.

    For undoing: a ``with`` that is being left must not be interrupted half-way.
    """

    def __init__(self) -> None:
        self._came: list[int] = []

    def start(self) -> None:
        """Take over the signals that would interrupt."""
        for signum in _SIGNALS:
            if signal.getsignal(signum) is _interrupt:
                signal.signal(signum, self._note)

    def end(self) -> None:
        """Give them back, and raise Interrupted if one came. Nothing happens without a start."""
        for signum in _SIGNALS:
            if signal.getsignal(signum) == self._note:
                signal.signal(signum, _interrupt)
        if self._came:
            _interrupt(self._came[0], None)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self._came.append(signum)
