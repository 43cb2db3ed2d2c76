"""Which paging form a Guest reads tables by: what its vCPUs say, and what --paging and --cr3 say instead."""

from __future__ import annotations

import pytest

from sevkvm import errors
from sevkvm.abi import x86
from sevkvm.abi.kvm import Sregs
from sevkvm.guest import Guest
from sevkvm.lab.demo import DemoOptions, demo_image
from sevkvm.paging.form import PagingForm, PagingMode
from sevkvm.shim.port import FakeGuest
from sevkvm.vcpu import paging_mode, root_gpa
from tests.unit.test_guest import CBIT, MIB, Holder, launch, open_fake

CR3 = 0x0012_3FFF
LONG_CR3 = 1 << CBIT | 0x7_0012_3FFF
NXE = x86.EFER_NXE
PROTECTED = x86.CR0_PE | x86.CR0_PG


def registers(cr0: int, cr4: int, efer: int, cr3: int = CR3) -> Sregs:
    blank = Sregs.unpack(bytes(312))
    return blank._replace(cr0=cr0, cr4=cr4, efer=efer, cr3=cr3)


REAL_MODE = registers(0x6000_0010, 0, 0, 0)
PLAIN_32 = registers(PROTECTED, 0, 0)
WITH_PSE = registers(PROTECTED, x86.CR4_PSE, 0)
WITH_PAE = registers(PROTECTED, x86.CR4_PSE | x86.CR4_PAE, NXE)
LONG = registers(PROTECTED, x86.CR4_PAE, x86.EFER_LME | x86.EFER_LMA | NXE, LONG_CR3)
LONG57 = LONG._replace(cr4=x86.CR4_PAE | x86.CR4_LA57)


def opened(*sregs: Sregs, encrypted: bool = True, **parts: object) -> tuple[Guest, Holder]:
    image = demo_image(DemoOptions(memory_nbytes=8 * MIB, cbit_pos=CBIT, vcpus=len(sregs)))
    fake: FakeGuest = launch(image, 0 if encrypted else None)
    for index, state in enumerate(sregs):
        fake.vcpu(index).sregs = state
    return open_fake(fake, **parts)


@pytest.mark.parametrize(
    ("sregs", "mode", "root"),
    [
        (REAL_MODE, PagingMode.OFF, 0),
        (PLAIN_32, PagingMode.LEGACY, 0x12_3000),
        (WITH_PSE, PagingMode.PSE, 0x12_3000),
        (WITH_PAE, PagingMode.PAE, 0x12_3FE0),
        (LONG, PagingMode.LEVEL4, 0x7_0012_3000),
        (LONG57, PagingMode.LEVEL5, 0x7_0012_3000),
        # LA57 and PAE without paging, LA57 before long mode is active: they wait
        (LONG57._replace(cr0=x86.CR0_PE), PagingMode.OFF, 0),
        (WITH_PAE._replace(efer=x86.EFER_LME, cr4=x86.CR4_PAE | x86.CR4_LA57), PagingMode.PAE, 0x12_3FE0),
    ],
)
def test_registers_tell_the_mode(sregs: Sregs, mode: PagingMode, root: int) -> None:
    assert paging_mode(sregs) is mode
    assert root_gpa(sregs.cr3, mode, CBIT) == root
    guest, _ = opened(sregs)
    form = guest.paging()
    assert (form.mode, form.root_gpa, form.cbit_pos) == (mode, root, CBIT)


@pytest.mark.parametrize("sregs", [WITH_PAE, LONG])
@pytest.mark.parametrize("nx", [True, False])
def test_nx_is_the_vcpus(sregs: Sregs, nx: bool) -> None:
    guest, _ = opened(sregs if nx else sregs._replace(efer=sregs.efer & ~NXE))
    assert guest.paging().nx == nx


def test_nx_is_taken_to_be_on_where_a_dump_does_not_tell() -> None:
    state = opened(LONG)[0].registers()[0]
    deduced = state._replace(sregs=WITH_PAE._replace(efer=0), unknown=frozenset({"efer"}))
    assert deduced.nx_enabled
    assert not deduced._replace(unknown=frozenset()).nx_enabled


def test_forms_of_all_vcpus_that_use_tables() -> None:
    guest, _ = opened(LONG, REAL_MODE, WITH_PAE, LONG, WITH_PSE)
    assert guest.forms() == [
        PagingForm(PagingMode.LEVEL4, 0x7_0012_3000, CBIT),
        PagingForm(PagingMode.PAE, 0x12_3FE0, CBIT),
        PagingForm(PagingMode.PSE, 0x12_3000, CBIT),
    ]
    guest, _ = opened(REAL_MODE)
    assert guest.forms() == []


@pytest.mark.parametrize("encrypted", [True, False])
def test_a_vcpu_without_paging_reads_what_is_there(encrypted: bool) -> None:
    guest, _ = opened(REAL_MODE, encrypted=encrypted)
    found = guest.translate(0x10_0000)
    assert (found.gpa, found.private, found.steps) == (0x10_0000, encrypted, ())
    assert guest.read_virtual(0x10_0000, 64) == guest.read_physical(0x10_0000, 64)


@pytest.mark.parametrize(
    ("sregs", "mode", "root"),
    [
        (LONG, PagingMode.LEVEL5, 0x7_0012_3000),
        (LONG, PagingMode.PAE, 0x12_3FE0),
        (WITH_PAE, PagingMode.LEVEL4, 0x12_3000),
        (WITH_PSE, PagingMode.LEGACY, 0x12_3000),
        (REAL_MODE, PagingMode.LEVEL4, 0),
        (LONG, PagingMode.OFF, 0),
    ],
)
def test_paging_overrides_the_vcpu(sregs: Sregs, mode: PagingMode, root: int) -> None:
    guest, holder = opened(sregs, paging=mode)
    form = guest.paging()
    assert (form.mode, form.root_gpa) == (mode, root)
    assert guest.forms() == ([form] if mode else [])
    assert not holder.warnings


@pytest.mark.parametrize(
    ("sregs", "mode"),
    [
        (WITH_PAE, PagingMode.PAE),
        (WITH_PSE, PagingMode.PSE),
        (LONG57, PagingMode.LEVEL5),
        (REAL_MODE, PagingMode.LEVEL4),
    ],
)
def test_named_tables_are_read_as_the_vcpu_reads_its_own(sregs: Sregs, mode: PagingMode) -> None:
    guest, _ = opened(sregs, cr3=0x45_6000)
    assert guest.paging() == PagingForm(mode, 0x45_6000, CBIT)
    assert guest.forms() == [guest.paging()]


def test_nx_of_named_tables() -> None:
    without = LONG._replace(efer=LONG.efer & ~NXE)
    assert not opened(without, cr3=0x45_6000)[0].paging().nx
    # 32-bit tables have no NX, so a vCPU that uses them does not tell
    assert opened(PLAIN_32, cr3=0x45_6000, paging=PagingMode.LEVEL4)[0].paging().nx


def test_without_registers_named_tables_have_4_levels() -> None:
    guest, holder = opened(LONG, no_registers="encrypted", cr3=LONG_CR3)
    assert guest.paging() == PagingForm(PagingMode.LEVEL4, 0x7_0012_3000, CBIT)
    assert any("4-level" in text for text in holder.warnings)


@pytest.mark.parametrize("mode", [mode for mode in PagingMode if mode])
def test_without_registers_paging_says_how_they_are_read(mode: PagingMode) -> None:
    guest, holder = opened(LONG, no_registers="encrypted", cr3=1 << CBIT | CR3, paging=mode)
    assert guest.paging() == PagingForm(mode, 0x12_3FE0 if mode is PagingMode.PAE else 0x12_3000, CBIT)
    assert guest.forms() == [guest.paging()]
    assert not holder.warnings
    guest, _ = opened(LONG, no_registers="encrypted", paging=mode)
    with pytest.raises(errors.RegistersUnavailable) as caught:
        guest.paging()
    assert caught.value.help
    assert "--cr3" in caught.value.help


def test_paging_none_needs_neither_registers_nor_tables() -> None:
    guest, holder = opened(LONG, no_registers="encrypted", paging=PagingMode.OFF)
    assert guest.paging() == PagingForm(PagingMode.OFF, 0, CBIT)
    assert guest.translate(0x1234).gpa == 0x1234
    assert (guest.forms(), holder.warnings, holder.holds) == ([], [], 0)


def test_forms_without_registers_say_why() -> None:
    guest, _ = opened(LONG, no_registers="encrypted", vcpus=[])
    with pytest.raises(errors.RegistersUnavailable, match="encrypted"):
        guest.forms()


@pytest.mark.parametrize("mode", [PagingMode.LEGACY, PagingMode.PSE, PagingMode.PAE])
def test_tables_above_4_gib_are_refused_where_they_cannot_be(mode: PagingMode) -> None:
    guest, _ = opened(LONG, cr3=LONG_CR3, paging=mode)
    with pytest.raises(errors.UsageError, match="above 4 GiB"):
        guest.paging()
