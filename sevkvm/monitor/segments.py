"""A segment register in a line of ``info registers``: selector, base, limit, attributes, and these in letters.

Type names: AMD64 APM volume 2, section 4.7 and 4.8; their spelling is QEMU's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sevkvm.abi import x86
from sevkvm.abi.elf import descriptor_flags

if TYPE_CHECKING:
    from sevkvm.abi.kvm import Segment, Sregs

_SYSTEM_32: Final = (
    *("Reserved", "TSS16-avl", "LDT", "TSS16-busy", "CallGate16", "TaskGate", "IntGate16", "TrapGate16"),
    *("Reserved", "TSS32-avl", "Reserved", "TSS32-busy", "CallGate32", "Reserved", "IntGate32", "TrapGate32"),
)
_SYSTEM_64: Final = (
    *("<hiword>", "Reserved", "LDT", "Reserved", "Reserved", "Reserved", "Reserved", "Reserved"),
    *("Reserved", "TSS64-avl", "Reserved", "TSS64-busy", "CallGate64", "Reserved", "IntGate64", "TrapGate64"),
)
_PRESENT: Final = 1 << 15


def segment_line(name: str, segment: Segment, sregs: Sregs, *, long: bool, lma: bool) -> str:
    """``long``: the vCPU runs 64-bit code; ``lma``: it is in long mode."""
    flags = 0 if segment.unusable else descriptor_flags(segment)
    width = 16 if long else 8
    base = segment.base if long else segment.base & 0xFFFFFFFF
    text = f"{name.upper():3}={segment.selector:04x} {base:0{width}x} {segment.limit:08x} {flags:08x}"
    if not sregs.cr0 & x86.CR0_PE or not flags & _PRESENT:
        return text + "\n"
    return f"{text} DPL={segment.dpl} {_type(segment, lma)}\n"


def _type(segment: Segment, lma: bool) -> str:
    kind = segment.type
    if not segment.s:
        return (_SYSTEM_64 if lma else _SYSTEM_32)[kind]
    accessed = "A" if kind & 1 else "-"
    if kind & 8:
        size = "CS64" if segment.l else "CS32" if segment.db else "CS16"
        return f"{size} [{'C' if kind & 4 else '-'}{'R' if kind & 2 else '-'}{accessed}]"
    size = "DS  " if segment.db or lma else "DS16"
    return f"{size} [{'E' if kind & 4 else '-'}{'W' if kind & 2 else '-'}{accessed}]"
