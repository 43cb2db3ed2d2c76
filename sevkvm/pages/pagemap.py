"""A classification of a guest's memory: sorted runs of pages of one kind."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from sevkvm.abi import x86

if TYPE_CHECKING:
    from sevkvm.pages.directmap import DirectMap
    from sevkvm.paging.form import PagingForm
    from sevkvm.paging.scan import ScanResult


class PageKind(str, Enum):
    """What is known of a page, as ``--json`` spells it.

    PLAIN: the guest is not encrypted. TABLE: a page table, which the processor reads as private whoever maps it how.
    CONFLICT: mapped both ways. UNMAPPED: no table that we know maps it.
    Only a survey tells the others. ROM: the guest cannot write it. UNTOUCHED: the guest has not written it, as private
    memory at least. HOLE: there is no memory.
    """

    PLAIN = "plain"
    PRIVATE = "private"
    SHARED = "shared"
    CONFLICT = "conflict"
    TABLE = "table"
    UNMAPPED = "unmapped"
    ROM = "rom"
    UNTOUCHED = "untouched"
    HOLE = "hole"


_KINDS = tuple(PageKind)
_CODES = {kind: 3 * code for code, kind in enumerate(_KINDS)}
_WAYS = (None, False, True)
_WAY_CODES = {way: code for code, way in enumerate(_WAYS)}

Stretch = tuple[int, int, PageKind, bool | None]


class PageRun(NamedTuple):
    """``nbytes`` of guest memory at ``gpa`` that are all of one kind, and read in one way."""

    gpa: int
    nbytes: int
    private: bool
    kind: PageKind


class PageMap:
    """A classification of guest memory: sorted runs that neither overlap nor touch an equal one.

    It is made of stretches ``(gpa, end, kind, private)``, ascending; ``private`` is None where nobody tells.

    conflicts: ``(gpa, nbytes)`` mapped both ways, table pages included. They are read as the direct map has them, if
    it does, else as private. scan: what the tables were found to be; None where none were read. forms: the address
    spaces that were scanned. direct_maps: the kernel's own view of RAM in them, where they have one.
    """

    def __init__(self, stretches: Iterable[Stretch]) -> None:
        self._starts = array("Q")
        self._ends = array("Q")
        self._codes = bytearray()
        self.conflicts: list[tuple[int, int]] = []
        self.scan: ScanResult | None = None
        self.forms: tuple[PagingForm, ...] = ()
        self.direct_maps: tuple[DirectMap, ...] = ()
        for gpa, end, kind, private in stretches:
            code = _CODES[kind] + _WAY_CODES[private]
            if self._ends and self._ends[-1] == gpa and self._codes[-1] == code:
                self._ends[-1] = end
                continue
            self._starts.append(gpa)
            self._ends.append(end)
            self._codes.append(code)

    def __len__(self) -> int:
        return len(self._starts)

    def kind(self, gpa: int) -> PageKind | None:
        """The kind of the page that holds ``gpa``; None where nothing is known to be."""
        code = self._code(gpa)
        return None if code is None else _KINDS[code // 3]

    def is_private(self, gpa: int, default_private: bool = True) -> bool:
        """Is ``gpa`` to be read through the decrypting path? The default answers for what nothing maps."""
        code = self._code(gpa)
        private = None if code is None else _WAYS[code % 3]
        return default_private if private is None else private

    def _code(self, gpa: int) -> int | None:
        index = bisect_right(self._starts, gpa) - 1
        return None if index < 0 or gpa >= self._ends[index] else self._codes[index]

    def stretches(self, start: int = 0, end: int = 1 << x86.MAX_PHYS_BIT) -> Iterator[Stretch]:
        """``(gpa, end, kind, private)`` in ``[start, end)``, ascending, cut at its edges."""
        for index in range(max(bisect_right(self._starts, start) - 1, 0), len(self._starts)):
            gpa, stop = max(self._starts[index], start), min(self._ends[index], end)
            if gpa >= end:
                return
            if gpa < stop:
                code = self._codes[index]
                yield gpa, stop, _KINDS[code // 3], _WAYS[code % 3]

    def runs(
        self, start: int = 0, end: int = 1 << x86.MAX_PHYS_BIT, default_private: bool = True
    ) -> Iterator[PageRun]:
        """The runs in ``[start, end)``, ascending, cut at its edges; what lies between them is no memory."""
        for gpa, stop, kind, private in self.stretches(start, end):
            yield PageRun(gpa, stop - gpa, default_private if private is None else private, kind)

    def kinds(self) -> Iterator[tuple[int, int, PageKind]]:
        """``(gpa, nbytes, kind)``: the runs merged wherever the kind is the same."""
        current: tuple[int, int, PageKind] | None = None
        for gpa, end, kind, _ in self.stretches():
            if current and sum(current[:2]) == gpa and current[2] is kind:
                gpa = current[0]
            elif current:
                yield current
            current = (gpa, end - gpa, kind)
        if current:
            yield current

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
