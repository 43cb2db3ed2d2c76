"""ELF cores as QEMU writes them: p_vaddr = p_paddr = gpa, or p_vaddr = gva in a dump of virtual memory."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from sevkvm.abi import elf
from sevkvm.dump.intake import Straight
from sevkvm.dump.plan import SPARE_PHDRS, Layout, Placed, cut, elf_layout, merge_placed, notes_offset

if TYPE_CHECKING:
    from sevkvm.dump.pieces import Hole, Piece
    from sevkvm.dump.sink import Sink


class ElfWriter:
    """Headers first, as if all could be read; rewritten at the end if some could not and the sink can seek.

    alias_mask: not 0: every segment is there a second time with this bit set in its addresses, and the same bytes.
    """

    def __init__(self, pieces: list[Piece], holes: list[Hole], notes: bytes, alias_mask: int = 0) -> None:
        self._aliases = (0, alias_mask) if alias_mask else (0,)
        self.layout: Layout = elf_layout(pieces, holes, len(notes), copies=len(self._aliases))
        self._notes = notes
        self._nphdrs = 1 + len(self._aliases) * len(merge_placed(self.layout.placed))
        self._notes_offset = notes_offset(self._nphdrs)

    def begin(self, sink: Sink) -> Straight:
        """ELF header, program headers, notes."""
        sink.write(self._headers([]))
        sink.skip(self._notes_offset - sink.offset)
        sink.write(self._notes)
        return Straight(sink)

    def finish(self, sink: Sink, lost: list[Hole]) -> list[Hole]:
        """Leave ``lost`` out of every segment, the largest first while program headers last.

        Returns ``lost`` with ``zero_filled`` where a segment had to keep it, which on a pipe is everywhere.
        """
        if not lost:
            return lost
        room = min(SPARE_PHDRS, elf.MAX_PHDRS - self._nphdrs) // len(self._aliases) if sink.seekable else 0
        by_size = sorted(lost, key=lambda hole: hole.nbytes, reverse=True)
        left_out = sorted(by_size[:room])
        if left_out:
            sink.rewrite(0, self._headers(left_out))
        kept_out = set(left_out)
        return [hole if hole in kept_out else replace(hole, zero_filled=True) for hole in lost]

    def _headers(self, lost: list[Hole]) -> bytes:
        note = elf.Phdr(elf.PT_NOTE, self._notes_offset, 0, 0, len(self._notes))
        segments = merge_placed(cut(self.layout.placed, lost))
        loads = [_load(segment, mask) for mask in self._aliases for segment in segments]
        return elf.core_headers([note, *loads])


def _load(segment: Placed, alias_mask: int) -> elf.Phdr:
    piece = segment.piece
    address, gpa = piece.address | alias_mask, piece.gpa | alias_mask
    return elf.Phdr(elf.PT_LOAD, segment.offset, address, gpa, piece.nbytes)
