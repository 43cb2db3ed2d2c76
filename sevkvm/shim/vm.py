"""A VM as the pretend kernel knows it: ``struct kvm`` with its ``struct kvm_sev_info``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from sevkvm.abi import kvm as abi

VM_TYPE_DEFAULT: Final = abi.KVM_X86_DEFAULT_VM
VM_TYPE_SEV: Final = abi.KVM_X86_SEV_VM
VM_TYPE_SEV_ES: Final = abi.KVM_X86_SEV_ES_VM


@dataclass(eq=False)
class Vm:
    """``mm`` is the address space that created it; ``sev_fd`` is 0 until LAUNCH_START records one.

    ``pages_locked`` counts what registered regions pin (RLIMIT_MEMLOCK);
    ``protected``: LAUNCH_UPDATE_VMSA has sealed the registers (guest_state_protected).
    """

    number: int
    mm: object
    vm_type: int = VM_TYPE_DEFAULT
    created_vcpus: int = 0
    dead: bool = False
    active: bool = False
    es: bool = False
    asid: int = 0
    handle: int = 0
    sev_fd: int = 0
    protected: bool = False
    pages_locked: int = 0
    vmsa_features: int = 0
    ghcb_version: int = 0
    regions: list[tuple[int, int]] = field(default_factory=list)

    @property
    def needs_init(self) -> bool:
        """A VM whose type says SEV runs no vCPU before INIT2."""
        return self.vm_type in (VM_TYPE_SEV, VM_TYPE_SEV_ES) and not self.active
