"""Raw dumps: the byte at file offset N is the guest's byte at START + N."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sevkvm.dump.intake import Straight
from sevkvm.dump.plan import Layout, raw_layout

if TYPE_CHECKING:
    from sevkvm.dump.pieces import Hole, Piece
    from sevkvm.dump.sink import Sink


class RawWriter:
    """No headers; registers have no place in it."""

    def __init__(self, pieces: list[Piece], holes: list[Hole], start: int, end: int) -> None:
        self.layout: Layout = raw_layout(pieces, holes, start, end)

    def begin(self, sink: Sink) -> Straight:
        """Nothing comes before the memory."""
        return Straight(sink)

    def finish(self, sink: Sink, lost: list[Hole]) -> list[Hole]:
        """Holes of the guest are holes of the file, or zeros in a pipe: told apart by the result alone."""
        sink.skip(self.layout.nbytes - sink.offset)
        return lost
