"""A real Guest made of test tables: registers, slots and table pages as the test says, nothing attached.

guest = audit_guest(tables, slots=[(0, 64 << 20)])
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from sevkvm.abi.kvm import SREGS_NBYTES, Regs, Sregs
from sevkvm.guest import Guest
from sevkvm.guestparts import GuestParts
from sevkvm.memory.policy import SevInfo, SevKind
from sevkvm.memory.source import Slot, SlotMap
from sevkvm.paging.mode import PagingMode
from tests.support.tables import Tables

if TYPE_CHECKING:
    from sevkvm.memory.source import PhysicalMemory

PG, WP, PSE, PAE, SMEP, SMAP, LA57 = 1 << 31, 1 << 16, 1 << 4, 1 << 5, 1 << 20, 1 << 21, 1 << 12
NXE, LMA, LME = 1 << 11, 1 << 10, 1 << 8
SAFE_CR0, SAFE_CR4, SAFE_EFER = PG | WP | 1, PAE | SMEP | SMAP, NXE | LMA | LME


@dataclass
class AuditVcpu:
    """A vCPU on some tables, everything that protects it on."""

    index: int
    cr3: int
    cr0: int = SAFE_CR0
    cr4: int = SAFE_CR4
    efer: int = SAFE_EFER
    unknown: frozenset[str] = frozenset()

    def get_regs(self) -> Regs:
        """Not asked for by an audit."""
        return Regs(*[0] * 18)

    def get_sregs(self) -> Sregs:
        """Control registers."""
        blank = Sregs.unpack(bytes(SREGS_NBYTES))
        return blank._replace(cr0=self.cr0, cr3=self.cr3, cr4=self.cr4, efer=self.efer)

    def get_msr(self, msr: int) -> int | None:
        """None is known."""
        return None


def vcpu_on(tables: Tables, index: int = 0, **changes: Any) -> AuditVcpu:
    """A vCPU that uses these tables."""
    vcpu = AuditVcpu(index, tables.root | tables.mask)
    if tables.mode == 5:
        vcpu.cr4 |= LA57
    if tables.mode <= PagingMode.PAE:
        vcpu.efer = NXE
        vcpu.cr4 = SMEP | SMAP | {PagingMode.PAE: PAE, PagingMode.PSE: PSE}.get(PagingMode(tables.mode), 0)
    for name, value in changes.items():
        setattr(vcpu, name, value)
    return vcpu


class TableMemory:
    """Table pages of several builders, by gpa; everything else reads as zeros."""

    chunk_nbytes = 1 << 16
    reason = "nothing is there"

    def __init__(self, slots: SlotMap, builders: Sequence[Tables]) -> None:
        self.slots = slots
        self.encrypted = any(tables.cbit is not None for tables in builders)
        self.pages: dict[int, bytes] = {}
        for tables in builders:
            self.pages |= tables.reader().pages

    def readinto(self, gpa: int, private: bool, buffer: memoryview, ahead: int = 0) -> int:
        """Never short: a test reads no memory that is not there."""
        buffer[:] = bytes(len(buffer))
        for page in range(gpa & ~0xFFF, gpa + len(buffer), 0x1000):
            start, end = max(page, gpa), min(page + 0x1000, gpa + len(buffer))
            if page in self.pages:
                buffer[start - gpa : end - gpa] = self.pages[page][start - page : end - page]
        return len(buffer)

    def peek(self, gpa: int, buffer: memoryview) -> int:
        """The same."""
        return self.readinto(gpa, True, buffer)

    def read(self, gpa: int, nbytes: int, private: bool = True) -> bytes:
        """The same."""
        buffer = bytearray(nbytes)
        self.readinto(gpa, private, memoryview(buffer))
        return bytes(buffer)

    def read_tables(self, gpas: Sequence[int], *, keep: bool = True) -> list[bytes | None]:
        """Tables; None outside them."""
        return [self.pages.get(gpa) for gpa in gpas]

    def counts(self) -> dict[str, int]:
        """Nothing is decrypted."""
        return {"firmware_commands": 0}

    def invalidate(self) -> None:
        """Nothing is remembered."""

    def settle(self) -> None:
        """Nothing is begun."""


class Holder:
    """Nobody runs; how often that was asked for."""

    depth = 0

    def hold(self) -> None:
        """One more."""
        self.depth += 1

    def release(self) -> None:
        """One less."""
        self.depth -= 1


def audit_guest(
    *builders: Tables,
    slots: Sequence[tuple[int, int]] = ((0, 64 << 20),),
    vcpus: Sequence[AuditVcpu] | None = None,
    **parts: Any,
) -> Guest:
    """A guest with one vCPU on each builder's tables, unless ``vcpus`` says otherwise."""
    ram = SlotMap(Slot(gpa, nbytes, 0x7F00_0000_0000 + gpa) for gpa, nbytes in slots)
    cbit = builders[0].cbit if builders else None
    memory = TableMemory(ram, builders)
    if vcpus is None:
        vcpus = [vcpu_on(tables, index) for index, tables in enumerate(builders)]
    sev = SevInfo(SevKind.NONE) if cbit is None else SevInfo(SevKind.SEV, cbit_pos=cbit)
    told: dict[str, Any] = {
        "pid": 1,
        "vm_fd": 3,
        "name": "guest",
        "sev": sev,
        "slots": ram,
        "memory": cast("PhysicalMemory", memory),
        "vcpus": vcpus,
        "holder": Holder(),
        "costs": dict,
        "warn": lambda text: None,
    }
    return Guest(GuestParts(**(told | parts)))
