"""Wait until somebody wants the guest to end."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import stat
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ENDING_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_PR_SET_PTRACER = 0x59616D61  # include/uapi/linux/prctl.h
_PR_SET_PTRACER_ANY = ctypes.c_ulong(-1)


def allow_tracing() -> None:
    """Let any process of this user attach to us: where Yama restricts ptrace to ancestors, we must say so.

    A guest to practise on is there to be looked into. Kernels without Yama refuse the call, and need it not.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PTRACER, _PR_SET_PTRACER_ANY, 0, 0, 0)


@contextmanager
def ending_signals() -> Iterator[int]:
    """While inside, the signals that end a program only make the yielded descriptor readable. Main thread only."""
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    old_handlers = {number: signal.signal(number, lambda *_: None) for number in ENDING_SIGNALS}
    old_wakeup = signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
    try:
        yield read_fd
    finally:
        signal.set_wakeup_fd(old_wakeup)
        for number, handler in old_handlers.items():
            signal.signal(number, handler)
        os.close(read_fd)
        os.close(write_fd)


def closable_stdin() -> int | None:
    """The descriptor of standard input if its end means something: a pipe or a socket.

    A script's background job has /dev/null there, which was at its end from the start; a terminal belongs to the
    foreground job, and Ctrl-C serves there.
    """
    try:
        mode = os.fstat(0).st_mode
    except OSError:
        return None
    return 0 if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) else None


def _ending_signal_came(signal_fd: int) -> bool:
    try:
        return any(number in ENDING_SIGNALS for number in os.read(signal_fd, 64))
    except BlockingIOError:
        return False


def wait_for_end(signal_fd: int, seconds: float | None = None) -> str:
    """Until a signal, the end of standard input, or ``seconds`` are over; says which."""
    deadline = None if seconds is None else time.monotonic() + seconds
    stdin_fd = closable_stdin()
    watched = [signal_fd] if stdin_fd is None else [signal_fd, stdin_fd]
    while True:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        ready, _, _ = select.select(watched, [], [], left)
        if not ready:
            return "timeout"
        # Asked even if only stdin woke us: a signal that came first is delivered as select returns.
        if _ending_signal_came(signal_fd):
            return "signal"
        if stdin_fd in ready and not os.read(0, 4096):
            return "stdin"


def say(line: str) -> None:
    """One line to standard output, at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
