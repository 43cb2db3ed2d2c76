"""A VM as the pretend kernel knows it: ``struct kvm`` with its ``struct kvm_sev_info``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from sevkvm.abi import kvm as abi
from sevkvm.shim.vcpu_state import reset_sregs

VM_TYPE_DEFAULT: Final = abi.KVM_X86_DEFAULT_VM
VM_TYPE_SEV: Final = abi.KVM_X86_SEV_VM
VM_TYPE_SEV_ES: Final = abi.KVM_X86_SEV_ES_VM
VM_TYPE_SNP: Final = abi.KVM_X86_SNP_VM


@dataclass(eq=False)
class Vcpu:
    """``struct kvm_vcpu``: what SEV-ES wants to know of it.

    ``protected``: LAUNCH_UPDATE_VMSA has sealed its registers (guest_state_protected); ``entered``: KVM_RUN was
    called since; ``guest_debug``: KVM_SET_GUEST_DEBUG has enabled something. ``sregs`` as they were last set.
    """

    guest_debug: bool = False
    protected: bool = False
    entered: bool = False
    sregs: abi.Sregs = field(default_factory=reset_sregs)

    def enter(self) -> None:
        """KVM_RUN."""
        self.entered = self.protected


@dataclass(eq=False)
class Vm:
    """``mm`` is the address space that created it; ``sev_fd`` is 0 until LAUNCH_START records one.

    ``pages_locked`` counts what registered regions pin (RLIMIT_MEMLOCK). ``owner`` is the VM that this one mirrors,
    ``mirrors`` those that mirror this one; ``closed``: nobody has a descriptor, only mirrors keep it.
    """

    number: int
    mm: object
    vm_type: int = VM_TYPE_DEFAULT
    dead: bool = False
    closed: bool = False
    active: bool = False
    es: bool = False
    asid: int = 0
    handle: int = 0
    sev_fd: int = 0
    snp_context: int = 0
    pages_locked: int = 0
    vmsa_features: int = 0
    ghcb_version: int = 0
    regions: list[tuple[int, int]] = field(default_factory=list)
    vcpus: list[Vcpu] = field(default_factory=list)
    vcpus_in_creation: int = 0
    owner: Vm | None = None
    mirrors: list[Vm] = field(default_factory=list)

    @property
    def snp(self) -> bool:
        """sev_snp_guest()."""
        return self.active and self.vm_type == VM_TYPE_SNP

    @property
    def has_protected_state(self) -> bool:
        """Do sealed vCPUs refuse to tell their registers? (The new VM types, since 6.10.)"""
        return self.vm_type in (VM_TYPE_SEV_ES, VM_TYPE_SNP)

    @property
    def created_vcpus(self) -> int:
        """vCPUs that are there or about to be."""
        return len(self.vcpus) + self.vcpus_in_creation

    def new_vcpu(self) -> Vcpu:
        """KVM_CREATE_VCPU."""
        vcpu = Vcpu()
        self.vcpus.append(vcpu)
        return vcpu

    @property
    def needs_init(self) -> bool:
        """A VM whose type says SEV runs no vCPU before INIT2."""
        return self.vm_type in (VM_TYPE_SEV, VM_TYPE_SEV_ES, VM_TYPE_SNP) and not self.active
