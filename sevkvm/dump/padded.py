"""Padded dumps: offset = gpa from 0 on, and every byte is really there, so that any copy keeps them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sevkvm.dump.plan import Layout, raw_layout

if TYPE_CHECKING:
    from sevkvm.dump.pieces import Hole, Piece
    from sevkvm.dump.plan import Placed
    from sevkvm.dump.sink import Sink

_ZEROS: Final = memoryview(bytes(1 << 20))


class PaddedWriter:
    """No headers; registers have no place in it. A file of it is not sparse: programs differ on what a hole is."""

    def __init__(self, pieces: list[Piece], holes: list[Hole], end: int) -> None:
        self.layout: Layout = raw_layout(pieces, holes, 0, end)

    def begin(self, sink: Sink) -> Padding:
        """Nothing comes before the memory."""
        return Padding(sink)

    def finish(self, sink: Sink, lost: list[Hole]) -> list[Hole]:
        """Zeros up to the end; lost bytes are zeros too, told by the result alone."""
        Padding(sink).zeros(self.layout.nbytes - sink.offset)
        return lost


class Padding:
    """An intake that writes zeros wherever there are no other bytes."""

    unit = 1

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def start(self, placed: Placed) -> None:
        """Zeros up to its offset."""
        self.zeros(placed.offset - self._sink.offset)

    def write(self, data: memoryview) -> None:
        """Straight on."""
        self._sink.write(data)

    def zeros(self, nbytes: int) -> None:
        """As bytes, never as a hole of the file."""
        while nbytes:
            step = min(nbytes, len(_ZEROS))
            self._sink.write(_ZEROS[:step])
            nbytes -= step

    def lose(self, nbytes: int) -> None:
        """As if they were zero."""
        self.zeros(nbytes)

    def close(self) -> None:
        """It holds nothing."""
