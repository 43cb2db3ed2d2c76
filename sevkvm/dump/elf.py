"""ELF cores as QEMU writes them: p_vaddr = p_paddr = gpa, or p_vaddr = gva in a dump of virtual memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from sevkvm.abi import elf
from sevkvm.dump.intake import Straight
from sevkvm.dump.plan import SPARE_PHDRS, Layout, Placed, cut, elf_layout, merge_placed, notes_offset
from sevkvm.dump.views import shown

if TYPE_CHECKING:
    from sevkvm.dump.pieces import Hole, Piece
    from sevkvm.dump.sink import Sink
    from sevkvm.dump.views import View


class ElfWriter:
    """Headers first, as if all could be read; rewritten at the end if some could not and the sink can seek.

    alias_mask: not 0: every segment is there a second time with this bit set in its addresses, and the same bytes.
    views: more segments, with the same bytes again, at virtual addresses.
    """

    def __init__(
        self,
        pieces: list[Piece],
        holes: list[Hole],
        notes: bytes,
        alias_mask: int = 0,
        views: Sequence[View] = (),
    ) -> None:
        self._aliases = (0, alias_mask) if alias_mask else (0,)
        self._views = views
        self.layout: Layout = elf_layout(
            pieces, holes, len(notes), lambda found: len(list(self._loads(found)))
        )
        self._notes = notes
        self._nphdrs = len(self._phdrs((), 0))
        self._notes_offset = notes_offset(self._nphdrs)

    def begin(self, sink: Sink) -> Straight:
        """ELF header, program headers, notes."""
        sink.write(elf.core_headers(self._phdrs(())))
        sink.skip(self._notes_offset - sink.offset)
        sink.write(self._notes)
        return Straight(sink)

    def finish(self, sink: Sink, lost: list[Hole]) -> list[Hole]:
        """Leave ``lost`` out of every segment, the largest first while program headers last.

        Returns ``lost`` with ``zero_filled`` where a segment had to keep it, which on a pipe is everywhere.
        """
        if not lost:
            return lost
        most = min(self._nphdrs + SPARE_PHDRS, elf.MAX_PHDRS)
        room = min(len(lost), (most - self._nphdrs) // len(self._aliases)) if sink.seekable else 0
        by_size = sorted(lost, key=lambda hole: hole.nbytes, reverse=True)
        left_out = sorted(by_size[:room])
        # a hole may split every view of it
        while left_out and len(phdrs := self._phdrs(left_out)) > most:
            room -= max(1, room // 8)
            left_out = sorted(by_size[:room])
        if left_out:
            sink.rewrite(0, elf.core_headers(phdrs))
        kept_out = set(left_out)
        return [hole if hole in kept_out else replace(hole, zero_filled=True) for hole in lost]

    def _phdrs(self, lost: Sequence[Hole], notes_at: int | None = None) -> list[elf.Phdr]:
        at = self._notes_offset if notes_at is None else notes_at
        note = elf.Phdr(elf.PT_NOTE, at, 0, 0, len(self._notes))
        return [note, *self._loads(merge_placed(cut(self.layout.placed, lost)))]

    def _loads(self, segments: Sequence[Placed]) -> Iterator[elf.Phdr]:
        # before what stands for itself: gdb takes the first segment that has an address, and a gva may be a gpa, too
        for view in shown(segments, self._views):
            yield _load(view, 0)
        for mask in self._aliases:
            for segment in segments:
                yield _load(segment, mask)


def _load(segment: Placed, alias_mask: int) -> elf.Phdr:
    piece = segment.piece
    address, gpa = piece.address | alias_mask, piece.gpa | alias_mask
    return elf.Phdr(elf.PT_LOAD, segment.offset, address, gpa, piece.nbytes)
