"""A file as mapped memory: nothing is copied before it is asked for, and every look at it is checked.

Somebody who shortens the file while it is mapped ends this process (SIGBUS), as with any mapped file.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from sevkvm import errors

if TYPE_CHECKING:
    from types import TracebackType


class Image(Protocol):
    """Bytes by file offset, as a format sees them. ``path`` names the file in errors."""

    path: str
    nbytes: int

    def take(self, offset: int, nbytes: int, what: str) -> memoryview:
        """Exactly nbytes at ``offset``; BadDump, which names ``what``, when the file does not hold them."""
        ...


class MappedFile:
    """A regular file, mapped for reading. ``nbytes`` is its size when it was opened."""

    def __init__(self, path: str) -> None:
        self.path = path
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO must not keep us waiting
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise errors.UsageError(
                    f"{path} is not a regular file", help="a dump is mapped, not streamed"
                )
            if status.st_size == 0:
                raise errors.BadDump(path, "it is empty")
            self._map = mmap.mmap(fd, status.st_size, prot=mmap.PROT_READ)
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd
        self._hole = (0, 0)  # the last one that was met
        self.nbytes = len(self._map)
        self.view = memoryview(self._map)

    def __enter__(self) -> MappedFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)
        self.view.release()
        # a view that somebody still holds (an error's traceback) keeps the file mapped until it is gone
        with suppress(BufferError):
            self._map.close()

    def take(self, offset: int, nbytes: int, what: str) -> memoryview:
        """A view of exactly nbytes at ``offset``; BadDump where the file is shorter."""
        if offset < 0 or nbytes < 0 or offset + nbytes > self.nbytes:
            raise errors.BadDump(
                self.path,
                f"{what} ({nbytes} bytes at file offset 0x{offset:x}) lies beyond its end at 0x{self.nbytes:x}",
            )
        return self.view[offset : offset + nbytes]

    def is_hole(self, offset: int, nbytes: int) -> bool:
        """Nothing was ever written there, and it reads as zeros; False where the file system does not tell.

        To read a hole through the map would fill the page cache with zeros.
        """
        if not self._hole[0] <= offset < self._hole[1]:
            try:
                data = os.lseek(self._fd, offset, os.SEEK_DATA)
            except OSError as error:
                data = self.nbytes if error.errno == errno.ENXIO else offset  # ENXIO: no data up to the end
            self._hole = (offset, data)
        return offset + nbytes <= self._hole[1]
