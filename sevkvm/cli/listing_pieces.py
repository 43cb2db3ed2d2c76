"""A list as pieces for stdout, each with the gva at which it starts."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sevkvm.cli.listing_rows import Layout
    from sevkvm.paging.listing import Leaf, Run

Piece = tuple[int | None, bytes]

_LINES = 512
_SECONDS = 0.05  # a slow guest's lines come out as they are found


def of_text(chunks: Iterable[bytes]) -> Iterator[Piece]:
    """Of the engine's text, whose lines start with 16 hexadecimal digits."""
    for chunk in chunks:
        yield int(chunk[:16], 16), chunk


def of_records(records: Iterable[Leaf] | Iterable[Run], layout: Layout) -> Iterator[Piece]:
    """Of leaves or runs, in a layout."""
    lines: list[str] = []
    before = layout.head
    gva = 0
    last = -_SECONDS  # the first line does not wait
    for record in records:
        if not lines:
            gva = record.gva
        lines.append(layout.line(record))
        if len(lines) == _LINES or time.monotonic() - last >= _SECONDS:
            yield gva, (before + layout.glue.join(lines)).encode()
            lines.clear()
            before = layout.glue
            last = time.monotonic()
    if lines:
        yield gva, (before + layout.glue.join(lines)).encode()
        before = layout.glue
    yield None, (layout.tail if before is not layout.head else layout.empty).encode()
