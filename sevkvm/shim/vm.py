"""A VM as the pretend kernel knows it: ``struct kvm`` with its ``struct kvm_sev_info``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

VM_TYPE_DEFAULT: Final = 0
VM_TYPE_SEV: Final = 2
VM_TYPE_SEV_ES: Final = 3


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
    regions: list[tuple[int, int]] = field(default_factory=list)
