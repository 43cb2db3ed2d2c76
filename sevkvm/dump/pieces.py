"""Which guest memory a dump shall hold, and what it cannot. Pure.

Every KVM slot counts as guest memory, read-only ones (firmware ROM) included: they are what the guest sees at
these addresses.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

from sevkvm import errors

if TYPE_CHECKING:
    from sevkvm.memory.source import SlotMap


class HoleReason(str, Enum):
    """Why bytes are missing. ``not-ram`` is the machine's layout, ``left-out`` was asked for; the others are losses."""

    NOT_RAM = "not-ram"
    NOT_MAPPED = "not-mapped"
    UNREADABLE = "unreadable"
    UNREADABLE_SAMPLED = "unreadable-sampled"
    SKIPPED = "skipped"
    LEFT_OUT = "left-out"


NO_LOSS: Final = frozenset({HoleReason.NOT_RAM, HoleReason.LEFT_OUT})


@dataclass(frozen=True, slots=True, order=True)
class Hole:
    """``nbytes`` at ``address`` (gpa, or gva in a dump of virtual memory) that are not in the file.

    ``unreadable-sampled``: only some of the pages were tried, and all of these failed.
    ``zero_filled``: an ELF segment shows zeros there, because no program header was left to leave it out.
    """

    address: int
    nbytes: int
    reason: HoleReason
    zero_filled: bool = False


@dataclass(frozen=True, slots=True)
class Mapping:
    """Guest-virtual memory at ``gva`` that the page tables map to ``gpa``; ``private`` is the leaf's C-bit."""

    gva: int
    gpa: int
    nbytes: int
    private: bool

    @property
    def end(self) -> int:
        """First gva past it."""
        return self.gva + self.nbytes


@dataclass(frozen=True, slots=True)
class Piece:
    """Guest memory that the file shall hold, inside one slot; the VMM keeps it at ``hva``.

    address: what a reader of the dump asks for, a gpa or a gva. private: None means that the page map knows.
    """

    address: int
    gpa: int
    hva: int
    nbytes: int
    private: bool | None = None

    @property
    def end(self) -> int:
        """First address past the piece."""
        return self.address + self.nbytes


def whole_ram(slots: SlotMap, *, rom_last: bool = True) -> tuple[int, int]:
    """From the first byte of the first slot to the end of the last.

    rom_last: with ROM that lies above all RAM. Without it a file ends where Linux thinks that memory does, which
    makedumpfile takes for granted: it looks for the second bitmap at a place computed from that (1.7.2).
    """
    if not len(slots):
        raise errors.UsageError("the VM has no memory slots", help="name them with --slot GPA:SIZE:HVA")
    ends = [slot.end for slot in slots.slots if rom_last or not slot.readonly]
    return slots.slots[0].gpa, ends[-1] if ends else slots.slots[-1].end


def physical_pieces(slots: SlotMap, start: int, end: int) -> tuple[list[Piece], list[Hole]]:
    """The guest memory in gpa ``[start, end)``, a piece a slot, and the rest; UsageError when there is none."""
    _check_range(start, end)
    pieces = [
        Piece(extent.gpa, extent.gpa, extent.hva, extent.nbytes)
        for extent in slots.extents(start, end - start)
    ]
    if not pieces:
        raise errors.UsageError(
            f"no guest memory in gpa 0x{start:x}:0x{end:x}",
            help="`sevkvm status` lists the guest's memory slots",
        )
    return pieces, gaps(pieces, start, end, HoleReason.NOT_RAM)


def virtual_pieces(
    mappings: Iterable[Mapping], slots: SlotMap, start: int, end: int
) -> tuple[list[Piece], list[Hole]]:
    """Mappings (ascending, not overlapping) cut to gva ``[start, end)`` and to slots, and what is missing."""
    _check_range(start, end)
    pieces: list[Piece] = []
    holes: list[Hole] = []
    at = start
    for mapping in mappings:
        low, high = max(mapping.gva, start), min(mapping.end, end)
        if low >= high:
            continue
        if low > at:
            holes.append(Hole(at, low - at, HoleReason.NOT_MAPPED))
        to_gva = mapping.gva - mapping.gpa
        found = [
            Piece(extent.gpa + to_gva, extent.gpa, extent.hva, extent.nbytes, mapping.private)
            for extent in slots.extents(low - to_gva, high - low)
        ]
        holes += gaps(found, low, high, HoleReason.NOT_RAM)
        pieces += found
        at = high
    if at < end:
        holes.append(Hole(at, end - at, HoleReason.NOT_MAPPED))
    if not pieces:
        raise errors.UsageError(
            f"nothing in gva 0x{start:x}:0x{end:x} is mapped to guest memory",
            help="`sevkvm translate -v GVA` shows where the page tables end",
        )
    return pieces, holes


def gaps(pieces: Iterable[Piece], start: int, end: int, reason: HoleReason) -> list[Hole]:
    """What lies between ascending pieces within ``[start, end)``."""
    found = []
    at = start
    for piece in pieces:
        if piece.address > at:
            found.append(Hole(at, piece.address - at, reason))
        at = max(at, piece.end)
    if at < end:
        found.append(Hole(at, end - at, reason))
    return found


def _check_range(start: int, end: int) -> None:
    if not 0 <= start < end <= 1 << 64:
        raise errors.UsageError(
            f"range 0x{start:x}:0x{end:x} is empty or too large",
            help="ranges are START:END, END is the first address not wanted",
        )
