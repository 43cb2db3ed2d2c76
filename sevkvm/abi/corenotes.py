"""Register notes of a core file, read: NT_PRSTATUS, and the ``QEMU`` note. :mod:`sevkvm.abi.elf` writes them.

Source: as there. Neither note has CR8, EFER or the APIC base, and an NT_PRSTATUS has no control register at all.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from sevkvm.abi import x86
from sevkvm.abi.kvm import Dtable, Regs, Segment, Sregs

PRSTATUS: Final = struct.Struct("<32xI76x27Q8x")
_SEGMENT: Final = struct.Struct("<IIIIQ")
_SEGMENTS_AT: Final = 8 + 18 * 8
_CONTROL_AT: Final = _SEGMENTS_AT + 10 * _SEGMENT.size
QEMU_LEAST_NBYTES: Final = _CONTROL_AT + 5 * 8
_HIGH_HALF: Final = 1 << 32

NOT_IN_QEMU_NOTE: Final = frozenset({"cr8", "efer", "apic_base"})


class CpuRegisters(NamedTuple):
    """What a dump tells of one vCPU. ``unknown``: the fields of ``sregs`` whose values the dump does not have.

    An unknown ``efer`` is deduced from the other registers; any other unknown field is 0.
    """

    index: int  # type: ignore[assignment]  # hides tuple.index(), which nobody asks of a vCPU
    regs: Regs
    sregs: Sregs
    unknown: frozenset[str]
    kernel_gs_base: int | None = None


def unpack_qemu_state(index: int, data: bytes) -> CpuRegisters:
    """The ``QEMU`` note's description, at least ``QEMU_LEAST_NBYTES`` of it."""
    regs = Regs(*struct.unpack_from("<18Q", data, 8))  # the order is KVM's
    cs, ds, es, fs, gs, ss, ldt, tr = (
        _segment(*_SEGMENT.unpack_from(data, _SEGMENTS_AT + number * _SEGMENT.size)) for number in range(8)
    )
    gdt, idt = (
        Dtable(base, limit & 0xFFFF)
        for _, limit, _, _, base in (
            _SEGMENT.unpack_from(data, _SEGMENTS_AT + number * _SEGMENT.size) for number in (8, 9)
        )
    )
    cr0, _, cr2, cr3, cr4 = struct.unpack_from("<5Q", data, _CONTROL_AT)
    sregs = Sregs(cs, ds, es, fs, gs, ss, tr, ldt, gdt, idt, cr0, cr2, cr3, cr4, cr8=0, efer=0, apic_base=0)
    sregs = sregs._replace(efer=_deduced_efer(regs, sregs))
    gs_base = None
    if min(len(data), struct.unpack_from("<I", data, 4)[0]) >= QEMU_LEAST_NBYTES + 8:
        (gs_base,) = struct.unpack_from("<Q", data, QEMU_LEAST_NBYTES)
    return CpuRegisters(index, regs, sregs, NOT_IN_QEMU_NOTE, gs_base)


def thread_of(prstatus: bytes) -> int:
    """``pr_pid`` of an NT_PRSTATUS: in a VM's core the vCPU's index + 1."""
    return int(PRSTATUS.unpack_from(prstatus)[0])


def _segment(selector: int, limit: int, flags: int, _pad: int, base: int) -> Segment:
    """A segment from its descriptor's upper half; one that is not present is not usable either."""
    present = flags >> 15 & 1
    return Segment(
        base=base,
        limit=limit,
        selector=selector & 0xFFFF,
        type=flags >> 8 & 15,
        present=present,
        dpl=flags >> 13 & 3,
        db=flags >> 22 & 1,
        s=flags >> 12 & 1,
        l=flags >> 21 & 1,
        g=flags >> 23 & 1,
        avl=flags >> 20 & 1,
        unusable=1 - present,
    )


def _deduced_efer(regs: Regs, sregs: Sregs) -> int:
    """Long mode shows in what only it can hold; NXE is taken as set there, as every 64-bit kernel has it.

    A 64-bit guest caught in 32-bit user code still has descriptor tables above 4 GiB.
    """
    if not (sregs.cr0 & x86.CR0_PG and sregs.cr4 & x86.CR4_PAE):
        return 0
    wide = max(regs.rip, sregs.gdt.base, sregs.idt.base, sregs.tr.base, sregs.cr3) >= _HIGH_HALF
    return x86.EFER_LME | x86.EFER_LMA | x86.EFER_NXE if sregs.cs.l or wide else 0
