"""One search from start to end: matches as they are found, and afterwards what was searched and what was not."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from sevkvm.search.memory import Lost, Stretch, read
from sevkvm.search.scanner import Scanner

if TYPE_CHECKING:
    from collections.abc import Callable

    from sevkvm.dump.reader import Memory
    from sevkvm.search.pattern import Finder
    from sevkvm.search.scanner import Match

_LISTED: Final = 1024


@dataclass
class Search:
    """Iterate over it once. Then ``lost`` lists what could not be read (bounded; ``lost_nbytes`` counts all).

    ``advance`` is called with the bytes dealt with so far.
    """

    memory: Memory
    stretches: Iterable[Stretch]
    pattern: Finder
    context: int = 0
    advance: Callable[[int], None] = lambda done: None
    searched_nbytes: int = 0
    lost_nbytes: int = 0
    lost_count: int = 0
    lost: list[Lost] = field(default_factory=list)
    _recent: deque[Stretch] = field(default_factory=deque)

    def __iter__(self) -> Iterator[Match]:
        scanner = Scanner(self.pattern, self.context)
        for address, data in read(self.memory, self._recorded(), self._lose):
            yield from scanner.feed(address, data)
            while self._recent and self._recent[0].address + self._recent[0].nbytes <= scanner.start:
                self._recent.popleft()
            self.searched_nbytes += len(data)
            self.advance(self.searched_nbytes + self.lost_nbytes)
        yield from scanner.flush()

    def gpa(self, address: int) -> int | None:
        """Where a byte of the match that was yielded last lies; free of charge."""
        for stretch in self._recent:
            if stretch.address <= address < stretch.address + stretch.nbytes:
                return stretch.gpa + address - stretch.address
        return None

    def _recorded(self) -> Iterator[Stretch]:
        for stretch in self.stretches:
            self._recent.append(stretch)
            yield stretch

    def _lose(self, lost: Lost) -> None:
        self.lost_nbytes += lost.nbytes
        self.lost_count += 1
        if len(self.lost) < _LISTED:
            self.lost.append(lost)
