"""Registers out of what QEMU's human monitor prints for ``info registers -a``: hostile text, bounded by its size.

A vCPU in 64-bit code is printed in full; in other code the upper halves and R8 to R15 are not, and are 0 here.
Source of the format: seen with QEMU 7.2; a segment's last word is the second word of its descriptor (AMD64
Architecture Programmer's Manual, volume 2, section 4.8).
"""

from __future__ import annotations

import re
from typing import Final

from sevkvm.abi.corenotes import CpuRegisters
from sevkvm.abi.kvm import Dtable, Regs, Segment, Sregs
from sevkvm.errors import ProtocolError

NOT_IN_MONITOR: Final = frozenset({"cr8", "apic_base"})
_MOST_NBYTES: Final = 64 << 20
_CPU: Final = re.compile(r"^CPU#(\d{1,5})\s*$", re.MULTILINE)
_GENERAL: Final = re.compile(r"\b([RE][0-9A-Z]{1,2}) ?=([0-9a-f]{16}|[0-9a-f]{8})\b")
_FLAGS: Final = re.compile(r"\b[RE]FL=([0-9a-f]{8})\b")
_SEGMENT: Final = re.compile(
    r"^(ES|CS|SS|DS|FS|GS|LDT|TR) *=([0-9a-f]{4}) ([0-9a-f]{8,16}) ([0-9a-f]{8}) ([0-9a-f]{8})", re.MULTILINE
)
_DTABLE: Final = re.compile(r"^(GDT|IDT)= +([0-9a-f]{8,16}) ([0-9a-f]{8})", re.MULTILINE)
_CONTROL: Final = re.compile(r"\b(CR[0-4]|EFER)=([0-9a-f]{8,16})\b")
_SHORT: Final = dict.fromkeys((f"r{number}" for number in range(8, 16)), 0)


def parse_registers(text: str) -> list[CpuRegisters]:
    """Every vCPU, in the order told; ProtocolError if a register is missing."""
    parts = _CPU.split(text[:_MOST_NBYTES])[1:]
    if not parts:
        raise ProtocolError("`info registers -a` names no CPU")
    return [_vcpu(int(number), body) for number, body in zip(parts[::2], parts[1::2], strict=True)]


def _vcpu(index: int, text: str) -> CpuRegisters:
    values: dict[str, int] = {}
    for name, value in _GENERAL.findall(text):
        long_name = name.lower() if name[0] == "R" else f"r{name[1:].lower()}"
        values.setdefault(long_name, int(value, 16))
    if "EIP=" in text:
        values = _SHORT | values
    values |= {name.lower(): int(value, 16) for name, value in _CONTROL.findall(text)}
    segments = {name.lower(): _segment(*words) for name, *words in _SEGMENT.findall(text)}
    tables = {
        n.lower(): Dtable(int(base, 16), int(limit, 16) & 0xFFFF) for n, base, limit in _DTABLE.findall(text)
    }
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
            cr8=0,
            efer=values["efer"],
            apic_base=0,
        )
    except KeyError as error:
        raise ProtocolError(f"`info registers -a`: CPU {index} has no {error.args[0]}") from error
    return CpuRegisters(index, regs, sregs, NOT_IN_MONITOR)


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
