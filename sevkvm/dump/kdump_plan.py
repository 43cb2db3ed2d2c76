"""What goes where in a kdump-compressed file. Pure. Page data have no fixed place; all before them has."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sevkvm import errors
from sevkvm.abi import kdump, x86
from sevkvm.dump.pieces import HoleReason
from sevkvm.dump.plan import Layout, Placed, round_up

if TYPE_CHECKING:
    from sevkvm.dump.pieces import Hole, Piece

PAGE = x86.PAGE_NBYTES


@dataclass(frozen=True)
class KdumpPlan:
    """File offsets, all but that of the notes at a block. ``npages``: how many descriptors there is room for."""

    npages: int
    max_mapnr: int
    bitmap_nbytes: int
    notes_offset: int
    bitmaps_offset: int
    descs_offset: int
    data_offset: int

    @property
    def sub_header_blocks(self) -> int:
        """Blocks of the sub-header with the notes."""
        return self.bitmaps_offset // PAGE - 1


def kdump_plan(pieces: list[Piece], notes_nbytes: int, holes: list[Hole] | None = None) -> KdumpPlan:
    """Places for the notes, both bitmaps and a descriptor for every page of ``pieces``; bitmaps span ``holes``."""
    for piece in pieces:
        if (piece.gpa | piece.nbytes) % PAGE:
            raise errors.UsageError(
                f"gpa 0x{piece.gpa:x}:0x{piece.gpa + piece.nbytes:x} are no whole pages, as --format kdump needs them",
                help="let the range begin and end at multiples of 4096",
            )
    npages = sum(piece.nbytes for piece in pieces) // PAGE
    max_mapnr = max(gpa + nbytes for gpa, nbytes in _ram(pieces, holes or [])) // PAGE
    notes = PAGE + kdump.SUB_HEADER_NBYTES
    bitmaps = round_up(notes + notes_nbytes)
    bitmap_nbytes = round_up(-(-max_mapnr // 8))
    descs = bitmaps + 2 * bitmap_nbytes
    data = round_up(descs + npages * kdump.DESC.size)
    return KdumpPlan(npages, max_mapnr, bitmap_nbytes, notes, bitmaps, descs, data)


def kdump_layout(pieces: list[Piece], holes: list[Hole], plan: KdumpPlan) -> Layout:
    """Pieces by gpa; the size is that of a guest whose pages neither shrink nor resemble each other."""
    placed = tuple(Placed(piece, piece.gpa) for piece in pieces)
    return Layout(placed, tuple(holes), plan.data_offset + (plan.npages + 1) * PAGE)


def ram_bitmap(pieces: list[Piece], nbytes: int, holes: list[Hole] | None = None) -> bytearray:
    """A bit for each page of ``pieces`` and of RAM left out; lowest pfn in the lowest bit of the first byte."""
    bitmap = bytearray(nbytes)
    for gpa, size in _ram(pieces, holes or []):
        set_bits(bitmap, gpa // PAGE, size // PAGE)
    return bitmap


def _ram(pieces: list[Piece], holes: list[Hole]) -> Iterator[tuple[int, int]]:
    """``(gpa, nbytes)``: makedumpfile, too, has pages that it filters in the first bitmap."""
    yield from ((piece.gpa, piece.nbytes) for piece in pieces)
    yield from ((hole.address, hole.nbytes) for hole in holes if hole.reason is HoleReason.LEFT_OUT)


def set_bits(bitmap: bytearray, first: int, count: int) -> None:
    """Set bits ``[first, first + count)``."""
    end = first + count
    while first < end and first % 8:
        bitmap[first // 8] |= 1 << first % 8
        first += 1
    whole = (end - first) // 8
    bitmap[first // 8 : first // 8 + whole] = b"\xff" * whole
    for bit in range(first + whole * 8, end):
        bitmap[bit // 8] |= 1 << bit % 8
