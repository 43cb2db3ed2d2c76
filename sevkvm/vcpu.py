"""A vCPU's registers and what they say about paging: C-bit and PCID taken off CR3."""

from __future__ import annotations

from dataclasses import dataclass

from sevkvm.abi.kvm import Regs, Sregs


@dataclass(frozen=True)
class VcpuState:
    """Registers of one vCPU at one moment; ``sregs.cr3`` is as KVM returned it."""

    index: int
    regs: Regs
    sregs: Sregs
