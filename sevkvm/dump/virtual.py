"""The mappings of a range of guest-virtual addresses, as pieces."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from sevkvm.abi import x86
from sevkvm.dump.pieces import Piece

if TYPE_CHECKING:
    from sevkvm.paging.walk import Translation

_CANONICAL_STEP = 1 << 47  # both ends of the non-canonical gap are multiples of it, with 4 and with 5 levels


def mapped_pieces(translate: Callable[[int], Translation], start: int, end: int) -> Iterator[Piece]:
    """Walk gva ``[start, end)`` page by page; a miss skips all that its table entry would have mapped.

    Neighbours that continue each other are one piece.
    """
    pending: Piece | None = None
    gva = start
    while gva < end:
        found = translate(gva)
        covered = _covered_nbytes(found)
        stop = min(gva - gva % covered + covered, end)
        if found.gpa is not None:
            piece = Piece(gva, found.gpa, stop - gva, found.private)
            if pending is not None and _continues(pending, piece):
                piece = Piece(pending.address, pending.gpa, pending.nbytes + piece.nbytes, piece.private)
            elif pending is not None:
                yield pending
            pending = piece
        gva = stop
    if pending is not None:
        yield pending


def _covered_nbytes(found: Translation) -> int:
    """How much virtual space shares the answer: the page's, or the missing entry's."""
    if found.page_nbytes is not None:
        return found.page_nbytes
    if not found.steps:
        return _CANONICAL_STEP
    return 1 << (x86.PAGE_SHIFT + 9 * (found.steps[-1].level - 1))


def _continues(first: Piece, then: Piece) -> bool:
    return (
        first.end == then.address and first.gpa + first.nbytes == then.gpa and first.private == then.private
    )
