"""A guest made of bytes: what a dump and an examine command need of one, and nothing of the host.

guest = FakeGuest({0: bytes(0x10000), 0x100000: b"..."}, bad_pages={0x3000})
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sevkvm import errors
from sevkvm.abi.kvm import Dtable, Regs, Segment, Sregs
from sevkvm.memory.policy import SevInfo, SevKind
from sevkvm.memory.source import Slot, SlotMap
from sevkvm.vcpu import VcpuState
from tests.support.tables import TABLE, Tables

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sevkvm.paging.form import PagingForm

PAGE = 4096


class FakeMemory:
    """Reads that follow the short-read rule. Private reads give the bytes xor 0xff: a mix-up shows."""

    def __init__(self, ram: Mapping[int, bytes], slots: SlotMap, bad_pages: Iterable[int]) -> None:
        self.chunk_nbytes = 8 * PAGE
        self.bad_pages = set(bad_pages)
        self.reads = 0
        self.raises_on_fault = False
        self.tables: Tables | None = None
        self.on_read: Callable[[int], None] = lambda gpa: None
        self._ram = ram
        self._slots = slots

    def readinto(self, gpa: int, private: bool, buffer: memoryview, ahead: int = 0) -> int:
        """See ``sevkvm.memory.source``."""
        self.reads += 1
        self.on_read(gpa)
        slot = self._slots.find(gpa)
        if slot is None:
            return 0
        want = min(len(buffer), slot.end - gpa)
        for page in range(gpa & -PAGE, gpa + want, PAGE):
            if page in self.bad_pages:
                if self.raises_on_fault:
                    raise errors.MemoryFault("gpa", page)
                want = max(page - gpa, 0)
                break
        data = self._ram[slot.gpa][gpa - slot.gpa : gpa - slot.gpa + want]
        buffer[:want] = bytes(byte ^ 0xFF for byte in data) if private else data
        return want

    def read(self, gpa: int, nbytes: int, private: bool = True) -> bytes:
        """Exactly nbytes."""
        buffer = bytearray(nbytes)
        assert self.readinto(gpa, private, memoryview(buffer)) == nbytes
        return bytes(buffer)

    def read_tables(self, gpas: Sequence[int], *, keep: bool = True) -> list[bytes | None]:
        """Tables lie outside the RAM: tests of what they map need not make room for them."""
        tables = self.tables.pages if self.tables else {}
        return [TABLE.pack(*tables[gpa]) if gpa in tables else None for gpa in gpas]


@dataclass
class FakeGuest:
    """``ram``: gpa of a slot to its bytes. ``states`` None: an SEV-ES guest's registers."""

    ram: Mapping[int, bytes]
    bad_pages: Iterable[int] = ()
    states: list[VcpuState] | None = None
    tables: Tables | None = None
    hold_count: int = 0
    sev: SevInfo = field(default_factory=lambda: SevInfo(SevKind.NONE))
    was_live: bool = False

    def __post_init__(self) -> None:
        self.slots = SlotMap(Slot(gpa, len(data), 0x7F00_0000_0000 + gpa) for gpa, data in self.ram.items())
        self.memory = FakeMemory(self.ram, self.slots, self.bad_pages)
        self.memory.tables = self.tables

    def registers(self) -> list[VcpuState]:
        """The states, or what an SEV-ES guest answers."""
        if self.states is None:
            raise errors.RegistersUnavailable("registers are encrypted (SEV-ES)")
        return self.states

    @contextmanager
    def held(self) -> Iterator[None]:
        """Count only."""
        self.hold_count += 1
        yield

    def paging(self) -> PagingForm:
        """How its tables are read."""
        assert self.tables is not None
        return self.tables.form

    def forms(self) -> list[PagingForm]:
        """None: nobody asks for them."""
        return []

    def vmcoreinfo(self) -> None:
        """It is no Linux."""


class UniformPages:
    """A page map for a guest whose pages are all private, or none."""

    def __init__(self, private: bool = False) -> None:
        self.private = private

    def runs(self, start: int, end: int) -> Iterator[tuple[int, int, bool, str]]:
        """One run."""
        yield start, end - start, self.private, "all"


class ListedPages:
    """A page map from a list of runs."""

    def __init__(self, *runs: tuple[int, int, bool, str]) -> None:
        self._runs = runs

    def runs(self, start: int, end: int) -> Iterator[tuple[int, int, bool, str]]:
        """The runs that touch ``[start, end)``, uncut."""
        return iter(run for run in self._runs if run[0] < end and run[0] + run[1] > start)


def pattern(nbytes: int, seed: int = 1) -> bytes:
    """Bytes that differ from page to page and are never a whole zero block."""
    page = bytes((7 * at + 3) & 0xFF or 1 for at in range(PAGE))
    return b"".join(
        (seed * 1_000_003 + number).to_bytes(8, "little") + page[8:] for number in range(nbytes // PAGE)
    )


def vcpu_state(index: int) -> VcpuState:
    """Registers that are all different, also from one vCPU to the next."""
    base = 0x1000 * (index + 1)
    regs = Regs(*(base + number for number in range(18)))
    segments = [
        Segment(base=base + 0x100 + n, limit=0xFFFFF, selector=8 * n + 8, type=11, present=1, s=1, l=1, g=1)
        for n in range(8)
    ]
    return VcpuState(
        index,
        regs,
        Sregs(
            *segments,
            gdt=Dtable(base + 0x200, 0x7F),
            idt=Dtable(base + 0x300, 0xFFF),
            cr0=0x80050033,
            cr2=base + 0x400,
            cr3=base + 0x8_0000_0000_0500,
            cr4=0x6F0,
            cr8=0,
            efer=0xD01,
            apic_base=0xFEE00900,
        ),
    )
