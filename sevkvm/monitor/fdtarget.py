"""A dump into a descriptor that a client passed. A pipe's reader must not keep the guest waiting: it gets a copy."""

from __future__ import annotations

import os
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from sevkvm import errors
from sevkvm.dump.sink import FdSink, Sink

_PIECE_NBYTES: Final = 1 << 16
_SLOWEST: Final = 1 << 20  # bytes a second that a reader must take
_PATIENCE: Final = 10.0


class FdTarget:
    """The dump goes into the file itself, or into an unnamed one (mode 0600) for ``deliver`` to copy."""

    seekable = True

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._regular = stat.S_ISREG(os.fstat(fd).st_mode)
        self._spool = None if self._regular else tempfile.TemporaryFile()  # noqa: SIM115 -- see close

    @contextmanager
    def open(self, nbytes: int) -> Iterator[Sink]:
        """A sink at the start of the file."""
        sink = FdSink(
            self._fd if self._spool is None else self._spool.fileno(), "the client's file", seekable=True
        )
        yield sink
        sink.finish()

    def deliver(self) -> None:
        """Copy what was put aside, while the guest runs; TargetTimeout for a reader that is too slow."""
        if self._spool is None:
            return
        fd = self._spool.fileno()
        end = os.fstat(fd).st_size
        deadline = time.monotonic() + _PATIENCE + end / _SLOWEST
        os.set_blocking(self._fd, False)
        sink = FdSink(self._fd, "the client's pipe", seekable=False)
        for offset in range(0, end, _PIECE_NBYTES):
            if time.monotonic() > deadline:
                raise errors.TargetTimeout("the client reads its dump too slowly")
            sink.write(os.pread(fd, _PIECE_NBYTES, offset))

    def close(self) -> None:
        """The descriptor too."""
        os.close(self._fd)
        if self._spool is not None:
            self._spool.close()
