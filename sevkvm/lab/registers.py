"""What a vCPU was seen to have in QEMU's monitor, completed so that KVM can be given it."""

from __future__ import annotations

from typing import Final

from sevkvm.abi import hmpregisters
from sevkvm.lab.image import VcpuInit

# The monitor does not print these two. Linux raises the APIC's task priority to 0x10 (CR8 holds bits 7 to 4),
# and leaves the APIC where reset put it: enabled at this address; bit 8 marks the processor that booted.
_CR8: Final = 1
_APIC_BASE: Final = 0xFEE0_0800
_APIC_BASE_BSP: Final = 1 << 8


def parse_registers(text: str) -> list[VcpuInit]:
    """Every vCPU of ``info registers -a``, in order; ProtocolError if a register is missing."""
    return [
        VcpuInit(
            told.regs,
            told.sregs._replace(cr8=_CR8, apic_base=_APIC_BASE | (0 if told.index else _APIC_BASE_BSP)),
        )
        for told in hmpregisters.parse_registers(text)
    ]
