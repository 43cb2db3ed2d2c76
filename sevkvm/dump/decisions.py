"""What a dump decided of each page: its kind, and how it was read. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from sevkvm.abi.x86 import PAGE_MASK, PAGE_NBYTES
from sevkvm.dump.unmapped import Unmapped
from sevkvm.pages.pagemap import PageKind
from sevkvm.pages.ranges import sweep
from sevkvm.pages.survey import complete

if TYPE_CHECKING:
    from sevkvm.dump.job import DumpResult
    from sevkvm.memory.source import SlotMap
    from sevkvm.pages.pagemap import PageMap

_ALL, _IN, _LOST, _TABLE, _EXCLUDED = 0, 1, 2, 4, 8


class ReadAs(str, Enum):
    """How bytes came into the file. TABLE: as private, and as a page table, of which ``strip`` takes the C-bit."""

    PRIVATE = "private"
    SHARED = "shared"
    TABLE = "table"
    NONE = "none"


class Decision(NamedTuple):
    """``nbytes`` of guest memory at ``gpa``, whole pages; NONE is what the file does not hold, or not all of."""

    gpa: int
    nbytes: int
    kind: PageKind
    read_as: ReadAs


def decisions(pages: PageMap, slots: SlotMap, result: DumpResult, unmapped: Unmapped) -> Iterator[Decision]:
    """Ascending from gpa 0 to the end of memory, without gaps; of a dump of physical memory."""
    current: Decision | None = None
    for each in _decided(pages, slots, result, unmapped):
        if current and current.gpa + current.nbytes == each.gpa and current[2:] == each[2:]:
            current = current._replace(nbytes=current.nbytes + each.nbytes)
            continue
        if current:
            yield current
        current = each
    if current:
        yield current


def _decided(pages: PageMap, slots: SlotMap, result: DumpResult, unmapped: Unmapped) -> Iterator[Decision]:
    layers = (
        (_ALL, ((0, max((slot.end for slot in slots), default=0)),)),
        (_IN, _inner((placed.piece.gpa, placed.piece.nbytes) for placed in result.ranges)),
        (_LOST, _outer((hole.address, hole.nbytes) for hole in result.holes)),
        (_EXCLUDED, result.excluded_ranges),
        (_TABLE, ((gpa, gpa + PAGE_NBYTES) for gpa in result.cbit.table_gpas)),
    )
    whole = complete(pages, slots)
    for start, stop, mask in sweep(layers):
        for gpa, end, kind, private in whole.stretches(start, stop):
            if mask & (_IN | _LOST | _EXCLUDED) != _IN:
                read_as = ReadAs.NONE
            elif mask & _TABLE or (kind is PageKind.TABLE and private):
                read_as = ReadAs.TABLE
            else:
                default = unmapped is not Unmapped.SHARED
                read_as = ReadAs.PRIVATE if (default if private is None else private) else ReadAs.SHARED
            yield Decision(gpa, end - gpa, kind, read_as)


def _inner(ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """``(gpa, end)``: the whole pages, where neighbours are one."""
    for start, end in _joined(ranges):
        first, last = -(-start // PAGE_NBYTES) * PAGE_NBYTES, end & ~PAGE_MASK
        if first < last:
            yield first, last


def _outer(ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """``(gpa, end)``: every page that is touched."""
    pages = (
        (gpa & ~PAGE_MASK, -(-(gpa + nbytes) // PAGE_NBYTES) * PAGE_NBYTES - (gpa & ~PAGE_MASK))
        for gpa, nbytes in ranges
    )
    yield from _joined(pages)


def _joined(ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """``(gpa, end)`` of ascending ``(gpa, nbytes)``, merged where they touch or overlap."""
    current: tuple[int, int] | None = None
    for gpa, nbytes in ranges:
        if current and gpa <= current[1]:
            current = (current[0], max(current[1], gpa + nbytes))
            continue
        if current:
            yield current
        current = (gpa, gpa + nbytes)
    if current:
        yield current
