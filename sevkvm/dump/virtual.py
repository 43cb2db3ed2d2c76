"""The mappings of a range of guest-virtual addresses, found by walking the guest's tables."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from sevkvm.dump.pieces import Mapping
from sevkvm.paging.walk import translate_range

if TYPE_CHECKING:
    from sevkvm.paging.fetch import TableReader
    from sevkvm.paging.form import PagingForm


def mappings(reader: TableReader, form: PagingForm, start: int, end: int) -> Iterator[Mapping]:
    """What gva ``[start, end)`` is mapped to, ascending; pages that continue each other are one mapping."""
    pending: Mapping | None = None
    for piece in translate_range(reader, form, start, end - start):
        if piece.gpa is None:
            continue
        here = Mapping(piece.gva, piece.gpa, piece.nbytes, piece.private)
        if pending is not None and _continues(pending, here):
            pending = replace(pending, nbytes=pending.nbytes + here.nbytes)
            continue
        if pending is not None:
            yield pending
        pending = here
    if pending is not None:
        yield pending


def _continues(first: Mapping, then: Mapping) -> bool:
    return first.end == then.gva and first.gpa + first.nbytes == then.gpa and first.private == then.private
