"""A classification of a guest's RAM: sorted runs of pages of one kind."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from sevkvm.abi import x86

if TYPE_CHECKING:
    from sevkvm.paging.scan import ScanResult


class PageKind(str, Enum):
    """What the guest's tables say of a page of RAM, as ``--json`` spells it.

    PLAIN: the guest is not encrypted. TABLE: a page table, which the processor reads as private whoever maps it how.
    CONFLICT: mapped both ways. UNMAPPED: no table that we know maps it.
    """

    PLAIN = "plain"
    PRIVATE = "private"
    SHARED = "shared"
    CONFLICT = "conflict"
    TABLE = "table"
    UNMAPPED = "unmapped"


_KINDS = tuple(PageKind)
_CODES = {kind: code for code, kind in enumerate(_KINDS)}


class PageRun(NamedTuple):
    """``nbytes`` of guest RAM at ``gpa`` that are all of one kind."""

    gpa: int
    nbytes: int
    private: bool
    kind: PageKind


class PageMap:
    """A classification of all RAM of a guest: sorted runs that neither overlap nor touch an equal one.

    conflicts: ``(gpa, nbytes)`` mapped both ways, table pages included; they count as private.
    scan: what the tables were found to be; None where none were read.
    """

    def __init__(self, runs: Iterable[tuple[int, int, PageKind]]) -> None:
        self._starts = array("Q")
        self._ends = array("Q")
        self._codes = bytearray()
        self.conflicts: list[tuple[int, int]] = []
        self.scan: ScanResult | None = None
        for gpa, end, kind in runs:
            if self._ends and self._ends[-1] == gpa and self._codes[-1] == _CODES[kind]:
                self._ends[-1] = end
                continue
            self._starts.append(gpa)
            self._ends.append(end)
            self._codes.append(_CODES[kind])

    def __len__(self) -> int:
        return len(self._starts)

    def kind(self, gpa: int) -> PageKind | None:
        """The kind of the page that holds ``gpa``; None where there is no RAM."""
        index = bisect_right(self._starts, gpa) - 1
        if index < 0 or gpa >= self._ends[index]:
            return None
        return _KINDS[self._codes[index]]

    def is_private(self, gpa: int, default_private: bool = True) -> bool:
        """Is ``gpa`` to be read through the decrypting path? The default answers for what nothing maps."""
        return _private(self.kind(gpa), default_private)

    def runs(
        self, start: int = 0, end: int = 1 << x86.MAX_PHYS_BIT, default_private: bool = True
    ) -> Iterator[PageRun]:
        """The runs of RAM in ``[start, end)``, ascending, cut at its edges; what lies between them is no RAM."""
        for index in range(max(bisect_right(self._starts, start) - 1, 0), len(self._starts)):
            gpa, stop = max(self._starts[index], start), min(self._ends[index], end)
            if gpa >= end:
                return
            if gpa < stop:
                kind = _KINDS[self._codes[index]]
                yield PageRun(gpa, stop - gpa, _private(kind, default_private), kind)

    def extents(
        self, start: int = 0, end: int = 1 << x86.MAX_PHYS_BIT, default_private: bool = True
    ) -> Iterator[tuple[int, int, bool]]:
        """``(gpa, nbytes, private)``: the runs merged wherever they are read in the same way."""
        current: tuple[int, int, bool] | None = None
        for gpa, nbytes, private, _ in self.runs(start, end, default_private):
            if current and current[0] + current[1] == gpa and current[2] == private:
                current = (current[0], current[1] + nbytes, private)
                continue
            if current:
                yield current
            current = (gpa, nbytes, private)
        if current:
            yield current

    def totals(self) -> dict[PageKind, int]:
        """Bytes of each kind that occurs."""
        sums: dict[PageKind, int] = {}
        for _, nbytes, _, kind in self.runs():
            sums[kind] = sums.get(kind, 0) + nbytes
        return sums


def _private(kind: PageKind | None, default: bool) -> bool:
    if kind is None or kind is PageKind.UNMAPPED:
        return default
    return kind in (PageKind.PRIVATE, PageKind.CONFLICT, PageKind.TABLE)
