"""Where the bytes of a dump go: a sequence of writes and zero spans, and for files a rewrite of the start."""

from __future__ import annotations

import errno
import os
import select
from typing import Protocol

from sevkvm import errors

STALL_SECONDS = 60.0
_ZEROS = memoryview(bytes(1 << 16))


class Sink(Protocol):
    """An open target. ``offset`` is the next byte's place; a seekable sink keeps zero spans sparse."""

    offset: int
    seekable: bool

    def write(self, data: bytes | memoryview) -> None:
        """Write all of ``data`` at ``offset``."""
        ...

    def skip(self, nbytes: int) -> None:
        """Go on ``nbytes`` later; what is left out reads as zero."""
        ...

    def rewrite(self, offset: int, data: bytes) -> None:
        """Replace bytes before ``offset``; only where ``seekable``."""
        ...


class FdSink:
    """Writes to a descriptor; partial writes are continued, failures become SevKvmError with a help text."""

    def __init__(self, fd: int, name: str, *, seekable: bool) -> None:
        self._fd = fd
        self._name = name
        self.seekable = seekable
        self.offset = 0

    def write(self, data: bytes | memoryview) -> None:
        """Write all of ``data``."""
        view = memoryview(data)
        while view:
            try:
                done = os.pwrite(self._fd, view, self.offset) if self.seekable else os.write(self._fd, view)
            except BlockingIOError:
                self._wait_writable()
                continue
            except OSError as error:
                raise write_error(error, self._name) from error
            self.offset += done
            view = view[done:]

    def skip(self, nbytes: int) -> None:
        """Leave a hole in a file; send zeros down a pipe."""
        if self.seekable:
            self.offset += nbytes
            return
        while nbytes:
            step = min(nbytes, len(_ZEROS))
            self.write(_ZEROS[:step])
            nbytes -= step

    def rewrite(self, offset: int, data: bytes) -> None:
        """Replace bytes that were written or skipped before."""
        end, self.offset = self.offset, offset
        try:
            self.write(data)
        finally:
            self.offset = end

    def finish(self) -> None:
        """Give a file its full size: a hole at the end needs it."""
        if self.seekable:
            try:
                os.ftruncate(self._fd, self.offset)
            except OSError as error:
                raise write_error(error, self._name) from error

    def _wait_writable(self) -> None:
        """For a pipe in non-blocking mode; bounded, because a guest may stand still meanwhile."""
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        if not poll.poll(STALL_SECONDS * 1000):
            raise errors.SevKvmError(f"{self._name} took no data for {STALL_SECONDS:.0f} seconds")


def write_error(error: OSError, name: str) -> errors.SevKvmError:
    """What a failed write means to the user."""
    if error.errno == errno.EPIPE:
        return errors.SevKvmError(f"{name} was closed", help="the program that reads the dump ended early")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return errors.SevKvmError(
            f"{name}: no space left",
            help="write to another file system, dump less with --gpa START:END, or compress: -o - | zstd > FILE",
        )
    if error.errno == errno.EFBIG:
        return errors.SevKvmError(
            f"{name}: the file may not grow that large",
            help="see `ulimit -f` and the file system's own limit",
        )
    return errors.SevKvmError(f"{name}: {os.strerror(error.errno or 0)}")
