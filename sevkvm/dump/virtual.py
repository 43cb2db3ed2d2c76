"""The mappings of a range of guest-virtual addresses, found by walking."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from sevkvm.abi import x86
from sevkvm.dump.pieces import Mapping

if TYPE_CHECKING:
    from sevkvm.paging.walk import Translation

_CANONICAL_STEP = 1 << 47  # both ends of the non-canonical gap are multiples of it, with 4 and with 5 levels


def mappings(translate: Callable[[int], Translation], start: int, end: int) -> Iterator[Mapping]:
    """Walk gva ``[start, end)`` page by page; a miss skips all that its table entry would have mapped.

    Neighbours that continue each other are one mapping.
    """
    pending: Mapping | None = None
    gva = start
    while gva < end:
        found = translate(gva)
        covered = _covered_nbytes(found)
        stop = min(gva - gva % covered + covered, end)
        if found.gpa is not None:
            here = Mapping(gva, found.gpa, stop - gva, found.private)
            if pending is not None and _continues(pending, here):
                here = replace(pending, nbytes=pending.nbytes + here.nbytes)
            elif pending is not None:
                yield pending
            pending = here
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


def _continues(first: Mapping, then: Mapping) -> bool:
    return first.end == then.gva and first.gpa + first.nbytes == then.gpa and first.private == then.private
