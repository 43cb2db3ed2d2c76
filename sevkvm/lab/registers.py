"""Registers out of what QEMU's human monitor prints for ``info registers -a``.

Source of the format: seen with QEMU 7.2; a segment's last word is the second word of its descriptor (AMD64
Architecture Programmer's Manual, volume 2, section 4.8).
"""

from __future__ import annotations

import re
from typing import Final

from sevkvm.abi.kvm import Dtable, Regs, Segment, Sregs
from sevkvm.errors import ProtocolError
from sevkvm.lab.image import VcpuInit

# The monitor does not print these two. Linux raises the APIC's task priority to 0x10 (CR8 holds bits 7 to 4),
# and leaves the APIC where reset put it: enabled at this address; bit 8 marks the processor that booted.
_CR8: Final = 1
_APIC_BASE: Final = 0xFEE0_0800
_APIC_BASE_BSP: Final = 1 << 8

_GENERAL: Final = re.compile(r"\b(R[0-9A-Z]{1,2}) ?=([0-9a-f]{16})\b")
_FLAGS: Final = re.compile(r"\bRFL=([0-9a-f]{8})\b")
_SEGMENT: Final = re.compile(
    r"^(ES|CS|SS|DS|FS|GS|LDT|TR) *=([0-9a-f]{4}) ([0-9a-f]{16}) ([0-9a-f]{8}) ([0-9a-f]{8})", re.MULTILINE
)
_DTABLE: Final = re.compile(r"^(GDT|IDT)= +([0-9a-f]{16}) ([0-9a-f]{8})", re.MULTILINE)
_CONTROL: Final = re.compile(r"\b(CR[0-4]|EFER)=([0-9a-f]{8,16})\b")


def parse_registers(text: str) -> list[VcpuInit]:
    """Every vCPU of a 64-bit guest, in order; ProtocolError if a register is missing."""
    parts = re.split(r"^CPU#(\d+)\s*$", text, flags=re.MULTILINE)[1:]
    if not parts:
        raise ProtocolError("`info registers -a` names no CPU")
    return [_vcpu(int(number), body) for number, body in zip(parts[::2], parts[1::2], strict=True)]


def _vcpu(index: int, text: str) -> VcpuInit:
    values = {name.lower(): int(value, 16) for name, value in _GENERAL.findall(text)}
    values |= {name.lower(): int(value, 16) for name, value in _CONTROL.findall(text)}
    segments = {name.lower(): _segment(*words) for name, *words in _SEGMENT.findall(text)}
    tables = {n.lower(): Dtable(int(base, 16), int(limit, 16)) for n, base, limit in _DTABLE.findall(text)}
    flags = _FLAGS.search(text)
    try:
        if flags is None:
            raise KeyError("rflags")
        values["rflags"] = int(flags.group(1), 16)
        regs = Regs(**{name: values[name] for name in Regs._fields})
        sregs = Sregs(
            cs=segments["cs"],
            ds=segments["ds"],
            es=segments["es"],
            fs=segments["fs"],
            gs=segments["gs"],
            ss=segments["ss"],
            tr=segments["tr"],
            ldt=segments["ldt"],
            gdt=tables["gdt"],
            idt=tables["idt"],
            cr0=values["cr0"],
            cr2=values["cr2"],
            cr3=values["cr3"],
            cr4=values["cr4"],
            cr8=_CR8,
            efer=values["efer"],
            apic_base=_APIC_BASE | (_APIC_BASE_BSP if index == 0 else 0),
        )
    except KeyError as error:
        raise ProtocolError(f"`info registers -a`: CPU {index} has no {error.args[0]}") from error
    return VcpuInit(regs, sregs)


def _segment(selector: str, base: str, limit: str, flags: str) -> Segment:
    bits = int(flags, 16)
    present = bits >> 15 & 1
    return Segment(
        base=int(base, 16),
        limit=int(limit, 16),
        selector=int(selector, 16),
        type=bits >> 8 & 0xF,
        present=present,
        dpl=bits >> 13 & 3,
        db=bits >> 22 & 1,
        s=bits >> 12 & 1,
        l=bits >> 21 & 1,
        g=bits >> 23 & 1,
        avl=bits >> 20 & 1,
        # A null selector leaves nothing but a base; KVM wants to be told.
        unusable=1 - present,
    )
