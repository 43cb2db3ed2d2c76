"""The file formats by name: what each can hold, and the writer of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from sevkvm.dump.codec import find_codec
from sevkvm.dump.elf import ElfWriter
from sevkvm.dump.kdump import KdumpWriter
from sevkvm.dump.lime import LimeWriter
from sevkvm.dump.notes import core_notes
from sevkvm.dump.padded import PaddedWriter
from sevkvm.dump.plan import DumpFormat, Layout
from sevkvm.dump.raw import RawWriter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sevkvm.dump.intake import Intake
    from sevkvm.dump.kernel import KernelFacts
    from sevkvm.dump.options import DumpOptions
    from sevkvm.dump.pieces import Hole, Piece
    from sevkvm.dump.sink import Sink
    from sevkvm.dump.views import View
    from sevkvm.vcpu import VcpuState


class Writer(Protocol):
    """One file format: a layout, what comes before the memory, and what its end needs."""

    layout: Layout

    def begin(self, sink: Sink) -> Intake:
        """Write what precedes guest memory; return what takes the memory."""
        ...

    def finish(self, sink: Sink, lost: list[Hole]) -> list[Hole]:
        """Complete the file; return ``lost`` with what became of each hole."""
        ...


@dataclass(frozen=True)
class Contents:
    """What a file shall hold: pieces and holes of ``[start, end)``, registers and kernel as far as they are known.

    alias_mask: show memory a second time with this bit in its addresses. views: the virtual addresses to show it at.
    live: it is of no single moment, which formats with notes tell.
    """

    pieces: list[Piece]
    holes: list[Hole]
    start: int
    end: int
    states: list[VcpuState]
    kernel: KernelFacts
    alias_mask: int = 0
    views: Sequence[View] = ()
    live: bool = False


def make_writer(options: DumpOptions, contents: Contents) -> Writer:
    """The writer of the format that the options name."""
    file_format, pieces, holes = options.format, contents.pieces, contents.holes
    if file_format is DumpFormat.KDUMP:
        states, codec = contents.states, find_codec(options.compress)
        notes = core_notes(states, live=contents.live)
        return KdumpWriter(pieces, holes, notes, len(states), contents.kernel, codec, options.exclude)
    if file_format is DumpFormat.ELF:
        notes = core_notes(contents.states, contents.kernel.vmcoreinfo, live=contents.live)
        return ElfWriter(pieces, holes, notes, contents.alias_mask, contents.views)
    if file_format is DumpFormat.LIME:
        return LimeWriter(pieces, holes)
    if file_format is DumpFormat.PADDED:
        return PaddedWriter(pieces, holes, contents.end)
    return RawWriter(pieces, holes, contents.start, contents.end)
