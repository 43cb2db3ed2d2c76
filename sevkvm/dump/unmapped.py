"""Pages that no page table reaches: read as private, as shared, or not at all. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from enum import Enum
from typing import TYPE_CHECKING, Final

from sevkvm import errors
from sevkvm.dump.pieces import Hole, HoleReason, Piece

if TYPE_CHECKING:
    from sevkvm.dump.reader import PageMap

KIND: Final = "unmapped"  # what a page map calls them
MAX_RANGES: Final = 1 << 18  # each takes some 300 bytes of ours


class Unmapped(str, Enum):
    """PRIVATE and SHARED: how to read them. SKIP: they are left out, and the dump is complete without them."""

    PRIVATE = "private"
    SHARED = "shared"
    SKIP = "skip"


class SharedUnmapped:
    """A page map that has them shared, whatever the one below says."""

    def __init__(self, page_map: PageMap) -> None:
        self._page_map = page_map

    def runs(self, start: int, end: int) -> Iterator[tuple[int, int, bool, str]]:
        """See PageMap."""
        for gpa, nbytes, private, kind in self._page_map.runs(start, end):
            yield gpa, nbytes, private and kind != KIND, kind


def without_unmapped(
    pieces: Iterable[Piece], holes: Iterable[Hole], page_map: PageMap
) -> tuple[list[Piece], list[Hole]]:
    """The pieces (of physical memory) without such pages, and the holes with them, ascending.

    UsageError where nothing is left, or too many ranges are: a guest can map every other page.
    """
    kept: list[Piece] = []
    left_out: list[Hole] = []
    for piece in pieces:
        at = piece.gpa
        for start, end in _unmapped(page_map, piece):
            if start > at:
                kept.append(_part(piece, at, start))
            left_out.append(Hole(start, end - start, HoleReason.LEFT_OUT))
            at = end
            if len(left_out) > MAX_RANGES:
                raise errors.UsageError(
                    f"the guest has more than {MAX_RANGES} ranges of pages that no page table reaches",
                    help="use --unmapped private, or a smaller range",
                )
        if at < piece.gpa + piece.nbytes:
            kept.append(_part(piece, at, piece.gpa + piece.nbytes))
    if not kept:
        raise errors.UsageError(
            "no page table reaches any of the memory, so --unmapped skip leaves out all of it",
            help="use --unmapped private",
        )
    return kept, sorted([*holes, *left_out])


def _unmapped(page_map: PageMap, piece: Piece) -> Iterator[tuple[int, int]]:
    """``(gpa, end)`` inside the piece; neighbours are one."""
    stop = piece.gpa + piece.nbytes
    pending: tuple[int, int] | None = None
    for gpa, nbytes, _, kind in page_map.runs(piece.gpa, stop):
        start, end = max(gpa, piece.gpa), min(gpa + nbytes, stop)
        if kind != KIND or start >= end:
            continue
        if pending is not None and pending[1] == start:
            start = pending[0]
        elif pending is not None:
            yield pending
        pending = (start, end)
    if pending is not None:
        yield pending


def _part(piece: Piece, start: int, end: int) -> Piece:
    skip = start - piece.gpa
    return replace(piece, address=piece.address + skip, gpa=start, hva=piece.hva + skip, nbytes=end - start)
