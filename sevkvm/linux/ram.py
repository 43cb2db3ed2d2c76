"""Guest RAM as a search sees it: counted, bounded, past the page cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from sevkvm.abi.x86 import PAGE_MASK, PAGE_NBYTES
from sevkvm.paging.walk import TableReader

if TYPE_CHECKING:
    from sevkvm.memory.source import SlotMap

CHUNK_NBYTES: Final = 512 << 10  # one read, and as few ioctls as the memory source makes of it
LIMIT_PAGES: Final = (
    1 << 20
)  # 4 GiB in all, or 8 TiB of the samples that come first; minutes on slow hardware
_SKIP_NBYTES_MAX: Final = 2 << 20
_TOLD_MAX: Final = 16

Progress = Callable[[int, int], None]


class Memory(TableReader, Protocol):
    """What a search needs of GuestMemory."""

    @property
    def slots(self) -> SlotMap:
        """Where there is RAM."""
        ...

    def peek(self, gpa: int, buffer: memoryview) -> int:
        """Private memory past the page cache; the short-read rule."""
        ...

    def read(self, gpa: int, nbytes: int, private: bool = True) -> bytes:
        """Exactly nbytes, or MemoryFault."""
        ...


@dataclass
class Search:
    """One search at work: what it may cost, what it has cost, and what it met on its way.

    limit_pages, pages: 4 KiB pages that may be, and were, read (of an encrypted guest each is a firmware command).
    refused: candidates that failed, and why. unreadable: ``(gpa, end)`` that could not be read. Both lists are
    bounded, the counts are not. searched_all: the limit cut nothing.
    """

    memory: Memory
    cbit_pos: int | None
    limit_pages: int = LIMIT_PAGES
    progress: Progress = lambda done, limit: None
    pages: int = 0
    refused: list[str] = field(default_factory=list)
    refused_count: int = 0
    unreadable: list[tuple[int, int]] = field(default_factory=list)
    unreadable_nbytes: int = 0
    searched_all: bool = True

    def refuse(self, why: str) -> None:
        """Tell of a candidate that was not believed."""
        self.refused_count += 1
        if len(self.refused) < _TOLD_MAX:
            self.refused.append(why)

    def spend(self, npages: int) -> bool:
        """May so many more pages be read?"""
        if self.pages + npages > self.limit_pages:
            self.searched_all = False
            return False
        self.pages += npages
        self.progress(self.pages, self.limit_pages)
        return True

    def peek(self, gpa: int, nbytes: int) -> bytes:
        """At most nbytes at ``gpa``, fewer where they cannot be read or may not be any more."""
        if self.memory.slots.find(gpa) is None:
            return b""  # a device: costs nothing
        if not self.spend(((gpa + nbytes + PAGE_MASK) >> 12) - (gpa >> 12)):
            return b""
        buffer = bytearray(nbytes)
        done = self.memory.peek(gpa, memoryview(buffer))
        return bytes(buffer) if done == nbytes else bytes(buffer[:done])

    def chunks(self, start: int, end: int) -> Iterator[tuple[int, bytes]]:
        """``(gpa, whole pages)`` of the RAM in ``[start, end)``, ascending; what cannot be read is told, not raised.

        ``start`` and ``end`` are page-aligned. Ends early when the limit is reached.
        """
        for extent in self.memory.slots.extents(start, end - start):
            at, stop, skip = extent.gpa, extent.gpa + extent.nbytes, PAGE_NBYTES
            while at < stop:
                nbytes = min(CHUNK_NBYTES, stop - at)
                data = self.peek(at, nbytes)
                if not data and not self.searched_all:
                    return
                whole = len(data) & ~PAGE_MASK
                if whole:
                    yield at, data[:whole]
                    at, skip = at + whole, PAGE_NBYTES
                if whole < nbytes:
                    # a hole is mostly one page or large: come out of it in few attempts
                    self._skip(at, min(at + skip, stop))
                    at, skip = at + skip, min(2 * skip, _SKIP_NBYTES_MAX)

    def _skip(self, gpa: int, end: int) -> None:
        self.unreadable_nbytes += end - gpa
        if self.unreadable and self.unreadable[-1][1] == gpa:
            self.unreadable[-1] = self.unreadable[-1][0], end
        elif len(self.unreadable) < _TOLD_MAX:
            self.unreadable.append((gpa, end))
