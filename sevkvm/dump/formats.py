"""The file formats by name: what each can hold, and the writer of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from sevkvm import errors
from sevkvm.dump.elf import ElfWriter
from sevkvm.dump.lime import LimeWriter
from sevkvm.dump.notes import core_notes
from sevkvm.dump.padded import PaddedWriter
from sevkvm.dump.plan import DumpFormat, Layout
from sevkvm.dump.raw import RawWriter

if TYPE_CHECKING:
    from sevkvm.dump.intake import Intake
    from sevkvm.dump.output import Target
    from sevkvm.dump.pieces import Hole, Piece
    from sevkvm.dump.sink import Sink
    from sevkvm.vcpu import VcpuState

WITH_REGISTERS = frozenset({DumpFormat.ELF})
PHYSICAL_ONLY = frozenset({DumpFormat.LIME, DumpFormat.PADDED})


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
    """What a file shall hold: pieces and holes of ``[start, end)``, and the registers that are known."""

    pieces: list[Piece]
    holes: list[Hole]
    start: int
    end: int
    states: list[VcpuState]


def check(file_format: DumpFormat, target: Target, *, virtual: bool) -> None:
    """UsageError if the format cannot hold that, or not go there; before anybody is attached to."""
    if virtual and file_format in PHYSICAL_ONLY:
        raise errors.UsageError(
            f"--format {file_format.value} is of guest-physical addresses",
            help="a dump of virtual addresses is --format raw or elf",
        )


def make_writer(file_format: DumpFormat, contents: Contents) -> Writer:
    """The writer of that format."""
    pieces, holes = contents.pieces, contents.holes
    if file_format is DumpFormat.ELF:
        return ElfWriter(pieces, holes, core_notes(contents.states))
    if file_format is DumpFormat.LIME:
        return LimeWriter(pieces, holes)
    if file_format is DumpFormat.PADDED:
        return PaddedWriter(pieces, holes, contents.end)
    return RawWriter(pieces, holes, contents.start, contents.end)
