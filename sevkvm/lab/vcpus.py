"""Registers of a vCPU in 64-bit mode, and the GDT that goes with them.

Source: AMD64 Architecture Programmer's Manual, volume 2, chapter 4 (descriptors) and 3.1 (control registers).
"""

from __future__ import annotations

import struct
from typing import Final

from sevkvm.abi import x86
from sevkvm.abi.kvm import Dtable, Regs, Segment, Sregs
from sevkvm.lab.image import VcpuInit

CR0: Final = x86.CR0_PG | x86.CR0_PE | 0x10010  # WP and ET
CR4_PGE: Final = 1 << 7
EFER: Final = x86.EFER_LME | x86.EFER_LMA | x86.EFER_NXE
APIC_BASE: Final = 0xFEE0_0800  # enabled
APIC_BASE_BSP: Final = 1 << 8
RFLAGS: Final = 2  # bit 1 is always set; interrupts are off

_FLAT_LIMIT: Final = 0xFFFF_FFFF
_CODE = Segment(limit=_FLAT_LIMIT, selector=0x08, type=11, present=1, s=1, l=1, g=1)
_DATA = Segment(limit=_FLAT_LIMIT, selector=0x10, type=3, present=1, s=1, db=1, g=1)
_TASK = Segment(limit=0x67, selector=0x18, type=11, present=1)
_NO_LDT = Segment(unusable=1)

# null, 64-bit code, data, a 16-byte busy TSS
GDT: Final = struct.pack("<5Q", 0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF, 0x00008B0000000067, 0)


def long_mode_vcpu(
    number: int, *, cr3: int, rip: int, rsp: int, gdt_gva: int, idt_gva: int, la57: bool, pcide: bool
) -> VcpuInit:
    """A vCPU about to run 64-bit code at ``rip``. Each general register tells its name and the vCPU's number.

    ``cr3`` is as the vCPU has it: root table, C-bit, PCID.
    """
    mark = 0x5E70_0000_0000_0000 | number << 32
    general = {
        name: mark | order for order, name in enumerate(Regs._fields) if name not in ("rip", "rsp", "rflags")
    }
    cr4 = x86.CR4_PAE | CR4_PGE | (x86.CR4_LA57 if la57 else 0) | (x86.CR4_PCIDE if pcide else 0)
    return VcpuInit(
        Regs(**general, rip=rip, rsp=rsp, rflags=RFLAGS),
        Sregs(
            cs=_CODE,
            ds=_DATA,
            es=_DATA,
            fs=_DATA,
            gs=_DATA,
            ss=_DATA,
            tr=_TASK,
            ldt=_NO_LDT,
            gdt=Dtable(gdt_gva, len(GDT) - 1),
            idt=Dtable(idt_gva, 0xFFF),
            cr0=CR0,
            cr2=0,
            cr3=cr3,
            cr4=cr4,
            cr8=0,
            efer=EFER,
            apic_base=APIC_BASE | (APIC_BASE_BSP if number == 0 else 0),
        ),
    )
