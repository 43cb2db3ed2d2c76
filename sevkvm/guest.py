"""Guest: what every consumer is handed. It never says how the VMM was entered."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sevkvm.abi.sev import Policy
    from sevkvm.memory.guest import GuestMemory
    from sevkvm.memory.source import SlotMap
    from sevkvm.paging.form import PagingForm
    from sevkvm.paging.walk import Translation
    from sevkvm.vcpu import VcpuState


class SevKind(str, Enum):
    """What protects a guest, as ``--json`` spells it."""

    NONE = "none"
    SEV = "sev"
    SEV_ES = "sev-es"
    SEV_SNP = "sev-snp"


@dataclass(frozen=True)
class SevInfo:
    """A guest's protection. ``policy``, ``handle`` and ``state`` are None unless the kernel told them.

    ``cbit_source`` says who told the C-bit position: ``option``, ``qmp``, ``guest-cpuid`` or ``host-cpuid``.
    """

    kind: SevKind
    policy: Policy | None = None
    handle: int | None = None
    state: int | None = None
    cbit_pos: int | None = None
    cbit_source: str | None = None


class Guest:
    """A guest we are attached to (interface; the lead implements it).

    pid, vm_fd: the VMM's process and its VM descriptor.
    vcpu_indexes: numbers of its vCPUs, ascending.
    """

    pid: int
    vm_fd: int
    sev: SevInfo
    slots: SlotMap
    memory: GuestMemory
    vcpu_indexes: Sequence[int]

    def registers(self) -> list[VcpuState]:
        """Registers of every vCPU; RegistersUnavailable on SEV-ES. Read once while the guest is held."""
        raise NotImplementedError

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep the vCPUs from running; nests."""
        raise NotImplementedError
        yield

    def paging(self, vcpu: int | None = None) -> PagingForm:
        """How this vCPU's (default: ``--vcpu``) tables are read; ``--cr3`` overrides the root."""
        raise NotImplementedError

    def translate(self, gva: int, form: PagingForm | None = None) -> Translation:
        """Walk the guest's tables for one address."""
        raise NotImplementedError

    def read_virtual(self, gva: int, nbytes: int, form: PagingForm | None = None) -> bytes:
        """Exactly nbytes at ``gva``; PageNotPresent or MemoryFault name the first byte that cannot be read."""
        raise NotImplementedError

    def read_physical(self, gpa: int, nbytes: int) -> bytes:
        """Exactly nbytes at ``gpa``, each page read as the guest maps it (private unless known as shared)."""
        raise NotImplementedError
