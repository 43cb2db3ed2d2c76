"""Which pages of a guest's memory its own page tables map as private (C-bit set), shared, or both.

Interval arithmetic on runs: cost follows the number of tables and of distinct runs, not the number of pages.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from sevkvm.abi import x86
from sevkvm.pages.pagemap import PageKind, PageMap, PageRun
from sevkvm.paging import scan

if TYPE_CHECKING:
    from sevkvm.memory.source import SlotMap
    from sevkvm.paging.fetch import TableReader
    from sevkvm.paging.form import PagingForm

__all__ = ["PageKind", "PageMap", "PageRun", "classify", "uniform"]

_RAM, _C1, _C0, _TABLE = 1, 2, 4, 8
_MAPPED_KINDS = {
    0: PageKind.UNMAPPED,
    _C1: PageKind.PRIVATE,
    _C0: PageKind.SHARED,
    _C1 | _C0: PageKind.CONFLICT,
}


def uniform(slots: SlotMap, kind: PageKind) -> PageMap:
    """All RAM of one kind: PLAIN for a guest without encryption, UNMAPPED where no tables can be found."""
    return PageMap((slot.gpa, slot.end, kind) for slot in slots)


def classify(
    reader: TableReader, forms: Sequence[PagingForm], slots: SlotMap, limits: scan.Limits | None = None
) -> PageMap:
    """Scan the tables of all ``forms`` (every vCPU's) and classify the RAM in ``slots``.

    A guest none of whose forms has a C-bit is PLAIN; nothing is read then. ValueError without any form: use
    :func:`uniform`.
    """
    if not forms:
        raise ValueError("no page tables to classify by")
    if all(form.cbit_pos is None for form in forms):
        return uniform(slots, PageKind.PLAIN)
    found = scan.leaves(reader, forms, limits=limits)
    layers = (
        (_RAM, ((slot.gpa, slot.end) for slot in slots)),
        (_C1, found.ranges(True)),
        (_C0, found.ranges(False)),
        (_TABLE, ((gpa, gpa + x86.PAGE_NBYTES) for gpa in found.table_gpas)),
    )
    conflicts: list[tuple[int, int]] = []

    def kinds() -> Iterator[tuple[int, int, PageKind]]:
        for gpa, end, mask in _sweep(layers):
            if not mask & _RAM:
                continue
            if mask & _C1 and mask & _C0:
                _append(conflicts, gpa, end)
            yield gpa, end, PageKind.TABLE if mask & _TABLE else _MAPPED_KINDS[mask & (_C1 | _C0)]

    pages = PageMap(kinds())
    pages.conflicts = conflicts
    pages.scan = found
    return pages


def _append(ranges: list[tuple[int, int]], gpa: int, end: int) -> None:
    """Add ``[gpa, end)`` to (gpa, nbytes) ranges, joined to the last one if it touches."""
    if ranges and sum(ranges[-1]) == gpa:
        gpa = ranges.pop()[0]
    ranges.append((gpa, end - gpa))


def _sweep(layers: Iterable[tuple[int, Iterable[tuple[int, int]]]]) -> Iterator[tuple[int, int, int]]:
    """``(start, end, mask)`` of the stretches in which the same layers lie.

    Each layer is a bit and its ascending ranges, which do not overlap: so every edge toggles the bit.
    """
    position = mask = 0
    for edge, bit in heapq.merge(*(_edges(bit, ranges) for bit, ranges in layers)):
        if edge > position:
            yield position, edge, mask
            position = edge
        mask ^= bit


def _edges(bit: int, ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    for start, end in ranges:
        yield start, bit
        yield end, bit
