"""Pages that a dump leaves out because of what they are used for: ``--exclude``, makedumpfile's dump levels."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from sevkvm import errors
from sevkvm.dump.options import Exclude
from sevkvm.dump.reader import EXCLUDED
from sevkvm.linux.pagetypes import BAD, page_types
from sevkvm.linux.space import KernelSpace
from sevkvm.linux.tables import check

if TYPE_CHECKING:
    from sevkvm.dump.kernel import KernelFacts
    from sevkvm.dump.pieces import Piece
    from sevkvm.dump.reader import DumpSource, PageMap


class ExcludingMap:
    """``page_map`` with runs of kind EXCLUDED where ``excluded`` (``(gpa, nbytes, type)``, ascending) has pages.

    nbytes_by_type: how many were left out, by the names of Exclude in lower case, and ``bad``.
    """

    def __init__(self, page_map: PageMap, excluded: Iterable[tuple[int, int, int]]) -> None:
        self._page_map = page_map
        self._spans: list[tuple[int, int]] = []
        self.nbytes_by_type: dict[str, int] = {}
        for gpa, nbytes, kind in excluded:
            name = "bad" if kind == BAD else (Exclude(kind).name or "").lower()
            self.nbytes_by_type[name] = self.nbytes_by_type.get(name, 0) + nbytes
            if self._spans and self._spans[-1][1] == gpa:
                self._spans[-1] = self._spans[-1][0], gpa + nbytes
            else:
                self._spans.append((gpa, gpa + nbytes))

    @property
    def ranges(self) -> tuple[tuple[int, int], ...]:
        """``(gpa, end)`` of what is excluded, ascending, neighbours as one."""
        return tuple(self._spans)

    def runs(self, start: int, end: int) -> Iterator[tuple[int, int, bool, str]]:
        """As PageMap's; nothing of an excluded page is in a run of another kind."""
        for gpa, nbytes, private, kind in self._page_map.runs(start, end):
            at, stop = gpa, gpa + nbytes
            index = max(bisect_right(self._spans, (at, stop)) - 1, 0)
            while index < len(self._spans) and self._spans[index][0] < stop:
                low, high = max(self._spans[index][0], at), min(self._spans[index][1], stop)
                index += 1
                if low >= high:
                    continue
                if low > at:
                    yield at, low - at, private, kind
                yield low, high - low, private, EXCLUDED
                at = high
            if at < stop:
                yield at, stop - at, private, kind


def excluding(
    guest: DumpSource, kernel: KernelFacts, level: Exclude, pieces: list[Piece], page_map: PageMap
) -> ExcludingMap:
    """``page_map`` without what ``level`` names beside zeros, which are known only when they are read.

    BadGuestData where the kernel does not tell.
    """
    wanted = int(level & ~Exclude.ZERO)
    if not wanted:
        return ExcludingMap(page_map, ())
    if kernel.info is None:
        raise errors.BadGuestData(
            f"what the guest's pages are used for is not known: {kernel.missing or 'no VMCOREINFO is known'}",
            help="leave out --exclude, or name only zero",
        )
    cbit_pos = guest.sev.cbit_pos if guest.sev.encrypted else None
    space = KernelSpace(guest.memory, check(guest.memory, kernel.info, cbit_pos))
    extents = ((piece.gpa, piece.nbytes) for piece in pieces)
    return ExcludingMap(page_map, page_types(space, kernel.info, wanted, extents))
