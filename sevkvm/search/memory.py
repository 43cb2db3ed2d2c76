"""The memory to be searched: ascending pieces of a guest's physical or virtual address space, and what is missing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from sevkvm.dump.pieces import Mapping, physical_pieces, virtual_pieces, whole_ram
from sevkvm.dump.reader import PageReader
from sevkvm.native import EntryFlag
from sevkvm.paging.listing import Listing

if TYPE_CHECKING:
    from sevkvm.dump.pieces import Piece
    from sevkvm.dump.reader import Memory, PageMap
    from sevkvm.memory.source import SlotMap

_PRIVATE = int(EntryFlag.PRIVATE)


class Stretch(NamedTuple):
    """Memory inside one slot that is read in one way; ``address`` is what the search reports, a gpa or a gva."""

    address: int
    gpa: int
    nbytes: int
    private: bool


class Lost(NamedTuple):
    """Guest memory that could not be read; ``sampled``: only some of its pages were tried."""

    address: int
    nbytes: int
    sampled: bool


def physical(slots: SlotMap, page_map: PageMap, ranges: Sequence[tuple[int, int]]) -> list[Stretch]:
    """RAM in half-open ranges of gpa (none: all), read as ``page_map`` says; UsageError for a range without RAM."""
    wanted = merged(ranges) if ranges else [whole_ram(slots)]
    stretches = []
    for start, end in wanted:
        for piece in physical_pieces(slots, start, end)[0]:
            for gpa, nbytes, private, _ in page_map.runs(piece.gpa, piece.end):
                first, last = max(gpa, piece.gpa), min(gpa + nbytes, piece.end)
                if first < last:
                    stretches.append(Stretch(first, first, last - first, private))
    return stretches


def virtual(slots: SlotMap, listing: Listing, ranges: Sequence[tuple[int, int]]) -> Iterator[Stretch]:
    """What is mapped to RAM in half-open ranges of gva (none: all), ascending. ``listing`` is of the same ranges.

    A piece at a time: an address space may map more than there is memory.
    """
    wanted = merged(ranges) if ranges else [(0, 1 << 64)]
    at = 0
    for mapping in _mappings(listing):
        while at < len(wanted) and wanted[at][1] <= mapping.gva:
            at += 1
        for start, end in wanted[at:]:
            if start >= mapping.end:
                break
            for piece in _cut(mapping, slots, max(start, mapping.gva), min(end, mapping.end)):
                yield Stretch(piece.address, piece.gpa, piece.nbytes, mapping.private)


def _cut(mapping: Mapping, slots: SlotMap, start: int, end: int) -> Sequence[Piece]:
    to_gva = mapping.gva - mapping.gpa
    if next(slots.extents(start - to_gva, end - start), None) is None:
        return ()  # device registers
    return virtual_pieces([mapping], slots, start, end)[0]


def _mappings(listing: Listing) -> Iterator[Mapping]:
    """Leaves that continue each other in both address spaces, as one."""
    gva = gpa = nbytes = 0
    private = False
    for leaf in listing.leaves():
        leaf_private = leaf.flags & _PRIVATE != 0
        if nbytes and leaf.gva == gva + nbytes and leaf.gpa == gpa + nbytes and leaf_private == private:
            nbytes += leaf.nbytes
            continue
        if nbytes:
            yield Mapping(gva, gpa, nbytes, private)
        gva, gpa, nbytes, private = leaf.gva, leaf.gpa, leaf.nbytes, leaf_private
    if nbytes:
        yield Mapping(gva, gpa, nbytes, private)


def merged(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Half-open ranges, ascending and disjoint: no byte is searched twice."""
    found: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        else:
            found.append((start, end))
    return found


def read(
    memory: Memory, stretches: Iterable[Stretch], lose: Callable[[Lost], None]
) -> Iterator[tuple[int, bytes]]:
    """``(address, bytes)`` of the stretches, in pieces of at most a chunk; what cannot be read goes to ``lose``."""
    reader = PageReader(memory)
    view = memoryview(reader.buffer)
    for address, gpa, nbytes, private in stretches:
        at, end, to_address = gpa, gpa + nbytes, address - gpa
        while at < end:
            want = min(end - at, len(view))
            got = reader.read(at, want, private, ahead=end - at - want)
            if got:
                yield at + to_address, bytes(view[:got])
            at += got
            if got == want:
                continue
            resume, every_page_tried = reader.next_readable(at, end, private)
            lose(Lost(at + to_address, resume - at, not every_page_tried))
            at = resume
