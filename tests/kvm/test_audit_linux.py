"""A real Linux under audit: nothing is wrong with it, and what is made wrong in its tables is found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sevkvm.audit import Report, Severity, audit
from sevkvm.audit.swiotlb import Swiotlb, find_swiotlb
from sevkvm.lab.emulator import Machine
from sevkvm.lab.files import mapped
from sevkvm.lab.seal import translate
from sevkvm.lab.sealed import PlainLinux, SealedLinux
from sevkvm.memory.policy import SevInfo, SevKind
from sevkvm.memory.source import Slot, SlotMap
from sevkvm.pages.directmap import find_direct_map
from tests.support.auditguest import audit_guest
from tests.support.linux import require_sealed_linux
from tests.support.readers.sealedguest import FileMemory
from tests.support.tables import KIB4, MIB2, NX, PS, RW, US, P

if TYPE_CHECKING:
    from sevkvm.guest import Guest
    from sevkvm.lab.image import VcpuInit

pytestmark = pytest.mark.kvm

ADDRESS = 0x7_FFFF_FFFF_F000
ES = "this is a SEV-ES guest: its registers are encrypted"


@dataclass(frozen=True)
class Bounced(Machine):
    """With a bounce buffer, as an encrypted guest has one, and with page-table isolation."""

    def argv(self, kernel: Path, initrd: Path, ram: Path, monitor: Path) -> list[str]:
        *argv, command_line = super().argv(kernel, initrd, ram, monitor)
        return [*argv, f"{command_line} swiotlb=force pti=on"]


class Ram(FileMemory):
    """RAM out of a file, and pages that a test has changed."""

    encrypted = False
    reason = ""

    def __init__(self, path: Path, slots: SlotMap) -> None:
        super().__init__(mapped(path), slots)
        self.changed: dict[int, bytearray] = {}

    def page(self, gpa: int) -> bytearray:
        """A page to be changed."""
        return self.changed.setdefault(gpa, bytearray(self._ram[gpa : gpa + KIB4]))

    def readinto(self, gpa: int, private: bool, buffer: memoryview, ahead: int = 0) -> int:
        nbytes = super().readinto(gpa, private, buffer)
        for page, data in self.changed.items():
            start, end = max(page, gpa), min(page + KIB4, gpa + nbytes)
            if start < end:
                buffer[start - gpa : end - gpa] = data[start - page : end - page]
        return nbytes

    def read(self, gpa: int, nbytes: int, private: bool = True) -> bytes:
        buffer = bytearray(nbytes)
        self.readinto(gpa, private, memoryview(buffer))
        return bytes(buffer)

    def read_tables(self, gpas: Sequence[int], *, keep: bool = True) -> list[bytes | None]:
        pages = super().read_tables(gpas)
        return [
            bytes(self.changed[gpa]) if gpa in self.changed else page
            for gpa, page in zip(gpas, pages, strict=True)
        ]

    def counts(self) -> dict[str, int]:
        return {"firmware_commands": 0}

    def invalidate(self) -> None:
        pass

    def settle(self) -> None:
        pass

    def unused(self) -> int:
        """The gpa of a page of zeros high up, which nobody uses."""
        end = self._ram.nbytes
        return next(
            gpa
            for gpa in range(end - KIB4, 0, -KIB4)
            if gpa not in self.changed and not any(self._ram[gpa : gpa + KIB4])
        )


class BootedVcpu:
    unknown: frozenset[str] = frozenset()

    def __init__(self, index: int, told: VcpuInit) -> None:
        self.index = index
        self._told = told

    def get_regs(self) -> Any:
        return self._told.regs

    def get_sregs(self) -> Any:
        return self._told.sregs

    def get_msr(self, msr: int) -> int | None:
        return None


class Booted:
    """The guest, and ways to spoil it."""

    def __init__(self, linux: SealedLinux | PlainLinux, **parts: Any) -> None:
        plain = linux.plain if isinstance(linux, SealedLinux) else linux
        self.cbit = 1 << linux.seal.cbit_pos if isinstance(linux, SealedLinux) else 0
        self.levels = plain.machine.levels
        ranges = [(first, end - first) for first, end in plain.private_ranges]
        slots = SlotMap(Slot(gpa, nbytes, 0x7F00_0000_0000 + gpa) for gpa, nbytes in ranges)
        self.memory = Ram(linux.ram, slots)
        sev = SevInfo(SevKind.NONE)
        if isinstance(linux, SealedLinux):
            sev = SevInfo(SevKind.SEV, cbit_pos=linux.seal.cbit_pos)
        vcpus = [BootedVcpu(index, vcpu) for index, vcpu in enumerate(linux.vcpus)]
        told = {"sev": sev, "slots": ranges, "memory": self.memory, "vcpus": vcpus}
        self.guest: Guest = audit_guest(**(told | parts))
        self.root = linux.vcpus[0].sregs.cr3 & ADDRESS & ~(self.cbit | 0x1000)

    def entry(self, gva: int) -> tuple[bytearray, int, int]:
        """(table page, offset, level) of the leaf entry of a gva."""
        table = self.root
        for level in range(self.levels, 0, -1):
            page, offset = self.memory.page(table), (gva >> 12 + 9 * (level - 1) & 511) * 8
            raw = int.from_bytes(page[offset : offset + 8], "little")
            assert raw & P, hex(gva)
            if level == 1 or raw & PS:
                return page, offset, level
            table = raw & ADDRESS & ~self.cbit
        raise AssertionError

    def change(self, gva: int, *, set_bits: int = 0, clear: int = 0) -> None:
        page, offset, _ = self.entry(gva)
        raw = int.from_bytes(page[offset : offset + 8], "little")
        page[offset : offset + 8] = (raw & ~clear | set_bits).to_bytes(8, "little")

    def share(self, gva: int, nbytes: int) -> None:
        """Clear the C-bit as set_memory_decrypted() does: large pages are split at the edges of the range."""
        end = gva + nbytes
        while gva < end:
            page, offset, level = self.entry(gva)
            if level == 2 and (gva % MIB2 or end - gva < MIB2):
                raw = int.from_bytes(page[offset : offset + 8], "little")
                table = self.memory.unused()
                for index in range(512):
                    small = (raw & ~PS) + index * KIB4
                    self.memory.page(table)[8 * index : 8 * index + 8] = small.to_bytes(8, "little")
                above = (table | self.cbit | P | RW).to_bytes(8, "little")
                page[offset : offset + 8] = above
                continue
            assert level <= 2
            self.change(gva, clear=self.cbit)
            gva += KIB4 if level == 1 else MIB2


def told(report: Report) -> set[str]:
    """The rules that found something worth a look."""
    assert report.cut == ()
    return {finding.rule.id for finding in report.findings if finding.severity is not Severity.NOTE}


def one(report: Report, rule: str) -> Any:
    (finding,) = [finding for finding in report.findings if finding.rule.id == rule]
    return finding


@pytest.fixture(scope="module", params=[Machine(), Machine(la57=True)], ids=["4-level", "5-level"])
def linux(request: pytest.FixtureRequest) -> SealedLinux:
    return require_sealed_linux(request.param)


@pytest.fixture(scope="module")
def bounced() -> SealedLinux:
    return require_sealed_linux(Bounced())


def test_a_plain_linux(linux: SealedLinux) -> None:
    report = audit(Booted(linux.plain).guest)
    assert told(report) == set()
    notes = {finding.rule.id for finding in report.findings}
    assert notes == {"SEVKVM017"} | ({"SEVKVM018"} if linux.plain.machine.la57 else set())
    assert one(report, "SEVKVM017").message == "page-table isolation is off"
    assert {rule.id for rule, _ in report.skipped} == {f"SEVKVM{number:03}" for number in range(6, 13)}


@pytest.mark.parametrize("es", [False, True])
def test_an_encrypted_linux(linux: SealedLinux, es: bool) -> None:
    report = audit(Booted(linux, no_registers=ES if es else None).guest)
    assert told(report) == set()
    assert report.kernel == linux.plain.facts["version"].split()[2]
    skipped = {rule.id: why for rule, why in report.skipped}
    assert skipped.pop("SEVKVM010") == "the kernel has no swiotlb"
    assert set(skipped.values()) == ({ES} if es else set())


def direct_map(booted: Booted) -> int:
    """Where gpa 0 is; the lab's own walk agrees."""
    (form,) = booted.guest.forms()
    found = find_direct_map(booted.memory, form, booted.guest.slots)
    assert found is not None
    cbit_pos = booted.cbit.bit_length() - 1 if booted.cbit else None
    at = found.gva + 16 * MIB2
    assert translate(booted.memory._ram, booted.root, booted.levels, at, cbit_pos) == 16 * MIB2
    return found.gva


def test_what_is_made_wrong_is_found(linux: SealedLinux) -> None:
    symbol = int(linux.plain.facts["symbol.linux_banner"], 16)
    text = symbol & 0xFFFF_FFFF_FFE0_0000
    for change, expected in (
        ({"set_bits": RW, "clear": NX}, {"SEVKVM001"}),
        ({"clear": 1 << linux.seal.cbit_pos}, {"SEVKVM007"}),
    ):
        booted = Booted(linux)
        booted.change(text, **change)
        report = audit(booted.guest)
        assert told(report) == expected
        place = one(report, next(iter(expected))).places[0]
        assert place.gva <= text < place.gva + place.nbytes


def test_a_page_table_that_is_shared(linux: SealedLinux) -> None:
    booted = Booted(linux)
    booted.share(direct_map(booted) + booted.root, KIB4)
    report = audit(booted.guest)
    assert told(report) == {"SEVKVM006"}
    assert one(report, "SEVKVM006").places[0].gpa == booted.root


def test_a_page_of_the_kernel_that_user_mode_reaches(linux: SealedLinux) -> None:
    booted = Booted(linux)
    gva = direct_map(booted) + 16 * MIB2
    table = booted.root
    for level in range(booted.levels, 1, -1):
        page, offset = booted.memory.page(table), (gva >> 12 + 9 * (level - 1) & 511) * 8
        raw = int.from_bytes(page[offset : offset + 8], "little") | US
        page[offset : offset + 8] = raw.to_bytes(8, "little")
        table = raw & ADDRESS & ~booted.cbit
        if raw & PS:
            break
    report = audit(booted.guest)
    assert told(report) == {"SEVKVM002"}
    assert gva in {place.gva for place in one(report, "SEVKVM002").places}


def swiotlb_of(booted: Booted) -> Swiotlb:
    info = booted.guest.vmcoreinfo()
    assert info is not None
    found = find_swiotlb(booted.memory, info, booted.cbit.bit_length() - 1, 1 << 40)
    assert found is not None
    return found


def test_isolation_is_on(bounced: SealedLinux) -> None:
    for linux in (bounced, bounced.plain):
        report = audit(Booted(linux).guest)
        assert one(report, "SEVKVM017").message == "page-table isolation is on"


def test_a_bounce_buffer_that_is_private(bounced: SealedLinux) -> None:
    """The lab seals all RAM: as if the kernel had forgotten to share its swiotlb."""
    booted = Booted(bounced)
    swiotlb = swiotlb_of(booted)
    assert swiotlb.end - swiotlb.gpa == 64 << 20
    report = audit(booted.guest)
    assert told(report) == {"SEVKVM010"}
    (place,) = one(report, "SEVKVM010").places
    assert (place.gpa, place.nbytes) == (swiotlb.gpa, swiotlb.end - swiotlb.gpa)


def test_a_bounce_buffer_that_is_shared_as_a_sev_kernel_does(bounced: SealedLinux) -> None:
    booted = Booted(bounced)
    swiotlb = swiotlb_of(booted)
    gva = direct_map(booted) + swiotlb.gpa
    booted.share(gva, swiotlb.end - swiotlb.gpa)
    report = audit(booted.guest)
    assert told(report) == set()
    shared = one(report, "SEVKVM011")
    assert shared.message == (
        f"64 MiB of RAM in 1 run; swiotlb at gpa 0x{swiotlb.gpa:x} to 0x{swiotlb.end:x}, 64 MiB"
    )
    assert [(place.gva, place.gpa, place.nbytes) for place in shared.places] == [(gva, swiotlb.gpa, 64 << 20)]
    assert one(report, "SEVKVM012").message == "64 MiB in 1 run"
