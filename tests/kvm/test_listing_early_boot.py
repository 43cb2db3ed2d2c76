"""A machine on its way up, under emulation: reset, firmware, a boot program's own tables, OVMF. QEMU is the judge."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sevkvm.abi.x86 import PTE_A
from sevkvm.paging.form import PagingForm
from sevkvm.paging.listing import Listing
from sevkvm.paging.mode import PagingMode
from sevkvm.paging.walk import translate
from tests.support.bootprogram import BootProgram
from tests.support.emulated import Emulated, Mode, emulated
from tests.support.monitorreader import MonitorReader
from tests.support.ours import form_in_use, form_of, our_mem, our_tlb
from tests.support.qemu import QemuVmm, qemu, require_qemu
from tests.support.refwalk import RW, P

pytestmark = pytest.mark.kvm

OVMF = Path("/usr/share/ovmf/OVMF.fd")
MAX_STEPS = 5000
OVMF_SECONDS = 60.0
NO_PAGING = PagingForm(PagingMode.OFF, 0, nx=False)


@pytest.fixture
def machine() -> Iterator[Emulated]:
    with emulated() as machine:
        yield machine


def assert_no_paging(machine: Emulated) -> None:
    assert machine.info_tlb() == machine.info_mem() == "PG disabled\n"
    reader = machine.reader()
    assert form_in_use(machine) == NO_PAGING
    assert our_tlb(reader, NO_PAGING) == our_mem(reader, NO_PAGING) == ""
    for gva in (0, 0x1234, 0xA_0000, 0x1234_5678, 0xFFFF_FFF0):
        assert machine.gva2gpa(gva) == translate(reader, NO_PAGING, gva).gpa == gva
    assert reader.fetched == []


def test_real_mode_at_reset(machine: Emulated) -> None:
    assert machine.stub.get("cr0") & 1 == 0
    assert_no_paging(machine)


def test_the_firmwares_protected_mode(machine: Emulated) -> None:
    for _ in range(MAX_STEPS):
        if machine.stub.get("cr0") & 1:
            break
        machine.stub.request("s")
    assert machine.stub.get("cr0") & 0x8000_0001 == 1
    assert_no_paging(machine)


@pytest.mark.parametrize(
    ("paging", "mode"), [("32", "32"), ("PSE", "pse"), ("PAE", "pae"), ("4LEVEL", "4level")]
)
def test_a_boot_programs_own_tables(machine: Emulated, tmp_path: Path, paging: str, mode: Mode) -> None:
    cr3 = BootProgram(machine, paging, tmp_path).cr3
    form = form_in_use(machine)
    assert form == form_of(mode, cr3, nx=form.nx)
    if mode == "pae":
        take_accessed_off(machine, form.root_gpa)
    assert our_tlb(machine.reader(), form) == machine.info_tlb()
    assert our_mem(machine.reader(), form) == machine.info_mem()
    # what the processor wrote to through these tables is dirty, what it read or ran is accessed
    entries = {leaf.gva: leaf.entry >> 5 & 3 for leaf in Listing(machine.reader(), form).leaves()}
    assert [entries[gva] for gva in (0x7000, 0x2_0000, 0x2_1000, 0x2_2000)] == [1, 1, 3, 0]


def take_accessed_off(machine: Emulated, gpa: int) -> None:
    """QEMU's emulation marks entries of PAE's top table as accessed, where that bit is reserved: a processor would
    refuse its own doing, and so do we.
    """
    assert machine.ram[gpa] == P | PTE_A
    machine.ram[gpa] = P


def test_tables_in_rom(machine: Emulated) -> None:
    """The firmware's code as page tables, at the end of 4 GiB and where real mode sees it."""
    rom = [*range(0xFFFC_0000, 0xFFFD_0000, 4096), *range(0xF_0000, 0x10_0000, 4096)]
    for index, gpa in enumerate(rom):
        machine.ram[0x1000 + index * 4 : 0x1004 + index * 4] = (gpa | P | RW).to_bytes(4, "little")
    machine.set_paging("32", 0x1000)
    form = form_of("32", 0x1000)
    reader = MonitorReader(machine.vmm)
    expected = machine.info_tlb()
    assert expected.count("\n") > 1000
    assert our_tlb(reader, form) == expected
    assert our_mem(reader, form) == machine.info_mem()
    # a reader that has RAM only tells of each
    listing = Listing(machine.reader(), form)
    assert list(listing.leaves()) == []
    assert [table.gpa for table in listing.report.unreadable] == rom


def run_until(vmm: QemuVmm, efer_bits: int, left: str | None = None) -> str:
    """Run until EFER has these bits, and CR3 is no longer ``left``, then stop; CR3 in hex."""
    vmm.execute("cont")
    deadline = time.monotonic() + OVMF_SECONDS
    while time.monotonic() < deadline:
        registers = vmm.hmp("info registers")
        if (
            int(register(registers, "EFER"), 16) & efer_bits == efer_bits
            and register(registers, "CR3") != left
        ):
            vmm.execute("stop")
            return register(vmm.hmp("info registers"), "CR3")
        time.sleep(0.005)
    raise AssertionError(f"EFER has never had 0x{efer_bits:x}, or CR3 stayed {left}: {registers}")


def register(registers: str, name: str) -> str:
    match = re.search(rf"\b{name}=([0-9a-f]+)", registers)
    assert match, registers
    return match.group(1)


def test_ovmf_in_long_mode() -> None:
    """At once on the tables of its first phase (EFER.LMA), later on those it made in RAM (EFER.NXE)."""
    require_qemu()
    if not OVMF.exists():
        pytest.skip(f"{OVMF} not installed (Debian: apt install ovmf)")
    with qemu(accel="tcg", ram="256M", extra=["-cpu", "max", "-bios", str(OVMF)]) as vmm:
        cr3 = None
        for efer_bits in (0x500, 0xD00):
            cr3 = run_until(vmm, efer_bits, cr3)
            efer = int(register(vmm.hmp("info registers"), "EFER"), 16)
            form = form_of("4level", int(cr3, 16), nx=bool(efer & 0x800))
            reader = MonitorReader(vmm)
            expected = vmm.hmp("info tlb")
            assert expected.count("\n") > 1000
            assert our_tlb(reader, form) == expected
            assert our_mem(reader, form) == vmm.hmp("info mem")
