"""A thread of our own with a descriptor table of its own: descriptors can have any number there.

See csrc/sk_worker.h. Its descriptors are not in /proc/PID/fd, and go with it, or with us.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from sevkvm import errors, native

if TYPE_CHECKING:
    from sevkvm.native import WorkerHandle

_SYS_CLOSE, _SYS_IOCTL, _SYS_FCNTL, _SYS_DUP3 = 3, 16, 72, 292  # x86-64
_WAIT_SLICE_MS: Final = 100  # between slices a pending Ctrl-C is taken


class Worker:
    """Has copies of the descriptors ``keep`` to begin with. ``timeout`` (seconds) bounds each wait."""

    def __init__(self, keep: Sequence[int], timeout: float) -> None:
        self._timeout = timeout
        self._handle: WorkerHandle | None = native.worker_open(keep)

    def start_ioctl(self, fd: int, request: int, argument: int) -> None:
        """Begin ioctl(2); nothing else can be asked for before ``wait``."""
        native.worker_start(self._live(), _SYS_IOCTL, fd, request, argument)

    def wait(self, what: str) -> int:
        """The raw result (>= 0 or -errno) of what was begun; TargetTimeout if it does not come (it may later)."""
        handle = self._live()
        deadline = time.monotonic() + self._timeout
        result = native.worker_wait(handle, _WAIT_SLICE_MS)
        while result is None:
            if time.monotonic() >= deadline:
                raise errors.TargetTimeout(
                    f"{what} has not returned after {self._timeout:g} s",
                    help="the secure processor may be slow; try --timeout",
                )
            result = native.worker_wait(handle, _WAIT_SLICE_MS)
        return result

    def move_above(self, fd: int, number: int) -> int:
        """Give a descriptor a number above that one; the new number, or -errno with the descriptor as it was."""
        moved = self._call(_SYS_FCNTL, fd, fcntl.F_DUPFD_CLOEXEC, number + 1)
        if moved >= 0:
            self.close_fd(fd)
        return moved

    def copy_to(self, fd: int, number: int) -> None:
        """Let ``number`` be the same file as ``fd``; OSError."""
        result = self._call(_SYS_DUP3, fd, number, os.O_CLOEXEC)
        if result < 0:
            raise OSError(-result, os.strerror(-result))

    def close_fd(self, fd: int) -> None:
        """Close one."""
        self._call(_SYS_CLOSE, fd)

    def close(self) -> bool:
        """End the thread, and with it its descriptors; False if a call does not come back: all this happens then.

        What such a call works on must stay mapped. Safe to call twice.
        """
        handle, self._handle = self._handle, None
        return handle is None or native.worker_close(handle, int(self._timeout * 1000))

    def _call(self, number: int, *args: int) -> int:
        native.worker_start(self._live(), number, *args)
        return self.wait("a system call of our own")

    def _live(self) -> WorkerHandle:
        if self._handle is None:
            raise errors.AttachError("the mirror VM is closed")
        return self._handle
