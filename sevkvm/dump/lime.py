"""LiME dumps: each range of memory behind a header with its first and last gpa.

Source: LiME's documentation of its format "lime" (version 1); numbers are little-endian.
"""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from sevkvm.dump.plan import Layout, Placed, merge_placed

if TYPE_CHECKING:
    from sevkvm.dump.pieces import Hole, Piece
    from sevkvm.dump.sink import Sink

HEADER: Final = struct.Struct("<IIQQ8x")  # magic, version, first gpa, last gpa (inclusive), reserved
MAGIC: Final = 0x4C694D45
VERSION: Final = 1


class LimeWriter:
    """In a file, unreadable bytes are left out: they split a range in two. In a pipe they are zeros."""

    def __init__(self, pieces: list[Piece], holes: list[Hole]) -> None:
        self.layout: Layout = lime_layout(pieces, holes)
        self._intake: LimeIntake | None = None

    def begin(self, sink: Sink) -> LimeIntake:
        """Nothing comes before the first range."""
        self._intake = LimeIntake(sink, merge_placed(self.layout.placed))
        return self._intake

    def finish(self, sink: Sink, lost: list[Hole]) -> list[Hole]:
        """Close the last range; the layout becomes that of the file as it is."""
        assert self._intake is not None, "begin() comes first"
        self._intake.end()
        if not sink.seekable:
            return [replace(hole, zero_filled=True) for hole in lost]
        self.layout = Layout(tuple(self._intake.written), self.layout.holes, sink.offset)
        return lost


class LimeIntake:
    """Opens a range where the plan has one and after every loss; its true end is known when it is closed."""

    unit = 1

    def __init__(self, sink: Sink, planned: list[Placed]) -> None:
        self._sink = sink
        self._planned = {placed.piece.gpa: placed for placed in planned}
        self._range = planned[0]
        self._offset: int | None = None  # where in the file the open range's bytes begin
        self._at = 0  # gpa of the next byte
        self.written: list[Placed] = []

    def start(self, placed: Placed) -> None:
        """Begin a range, unless the piece continues the one before."""
        self._at = placed.piece.gpa
        if self._at in self._planned:
            self.end()
            self._range = self._planned[self._at]

    def write(self, data: memoryview) -> None:
        """Straight on."""
        self._open()
        self._sink.write(data)
        self._at += len(data)

    def zeros(self, nbytes: int) -> None:
        """Sparse where the sink can."""
        self._open()
        self._sink.skip(nbytes)
        self._at += nbytes

    def lose(self, nbytes: int) -> None:
        """Leave them out; what follows them gets a header of its own."""
        if not self._sink.seekable:
            self.zeros(nbytes)
            return
        self.end()
        self._at += nbytes

    def close(self) -> None:
        """It holds nothing."""

    def end(self) -> None:
        """End the open range, if any, where its bytes end."""
        if self._offset is None:
            return
        planned = self._range.piece
        nbytes = self._sink.offset - self._offset
        gpa = self.written[-1].piece.gpa
        if gpa + nbytes < planned.end:
            self._sink.rewrite(self._offset - HEADER.size, _header(gpa, gpa + nbytes))
        piece = replace(planned, address=gpa, gpa=gpa, hva=planned.hva + gpa - planned.gpa, nbytes=nbytes)
        self.written[-1] = Placed(piece, self._offset)
        self._offset = None

    def _open(self) -> None:
        """The header, before the first byte: a range of which nothing can be read leaves none."""
        if self._offset is not None:
            return
        self._sink.write(_header(self._at, self._range.piece.end))
        self._offset = self._sink.offset
        self.written.append(Placed(replace(self._range.piece, gpa=self._at), self._offset))


def lime_layout(pieces: list[Piece], holes: list[Hole]) -> Layout:
    """Headers and ranges one after the other; pieces that continue each other share a range."""
    continuous = merge_placed(Placed(piece, piece.gpa) for piece in pieces)
    starts = {placed.piece.gpa for placed in continuous}
    offset = 0
    placed = []
    for piece in pieces:
        offset += HEADER.size if piece.gpa in starts else 0
        placed.append(Placed(piece, offset))
        offset += piece.nbytes
    return Layout(tuple(placed), tuple(holes), offset)


def _header(gpa: int, end: int) -> bytes:
    return HEADER.pack(MAGIC, VERSION, gpa, end - 1)
