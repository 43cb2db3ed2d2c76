"""A Guest whose registers nobody can read: its kernel's tables are found through the pretend firmware, and counted."""

from __future__ import annotations

import pytest

from sevkvm import errors
from sevkvm.abi.policybits import POLICY_ES
from sevkvm.guest import Guest
from sevkvm.shim.port import FakeGuest as ShimGuest
from sevkvm.shim.port import launch_guest
from tests.support.fakekernel import FakeKernel, FakeRam
from tests.unit.test_guest import CBIT, Holder, commands, decrypts, open_fake

MIB = 1 << 20
NOTE = 0x12_3000
ES = "this is a SEV-ES guest: its registers are encrypted"


def launch(ram: FakeRam) -> ShimGuest:
    return launch_guest({0: bytes(ram.ram)}, policy=POLICY_ES, shared=[], vcpus=1, es=True)


@pytest.fixture(scope="module")
def kernel_ram() -> tuple[FakeKernel, FakeRam]:
    ram = FakeRam(16 * MIB, CBIT)
    return ram.add_kernel(data_gpa=8 * MIB, note_gpa=NOTE), ram


@pytest.fixture
def opened(kernel_ram: tuple[FakeKernel, FakeRam]) -> tuple[Guest, Holder, ShimGuest]:
    fake = launch(kernel_ram[1])
    return *open_fake(fake, no_registers=ES), fake


def test_virtual_addresses_work_without_registers(
    kernel_ram: tuple[FakeKernel, FakeRam], opened: tuple[Guest, Holder, ShimGuest]
) -> None:
    kernel, _ = kernel_ram
    guest, holder, fake = opened
    with guest.held():
        uts_gva = kernel.data_gva + (kernel.uts_gpa - kernel.data_gpa)
        assert guest.translate(uts_gva).gpa == kernel.uts_gpa
        assert guest.read_virtual(uts_gva, 6) == b"Linux\0"
        assert guest.forms() == [guest.paging()]
        assert guest.paging().root_gpa == kernel.root_gpa
    (said,) = holder.warnings
    # 8 samples, 512 KiB with the top table, 3.5 MiB of data, the note's head and its text; of tables the top and,
    # down to the kernel and to its direct map, two each; and the page with init_uts_ns
    assert "4-level page tables of Linux 6.1.0-fake" in said
    assert f"at gpa {kernel.root_gpa:#x} with {8 + 128 + 896 + 2 + 5 + 1} firmware commands" in said
    # afterwards one for the page that was asked for
    assert commands(guest) == decrypts(fake)


def test_the_search_is_made_once_and_fills_no_cache(opened: tuple[Guest, Holder, ShimGuest]) -> None:
    guest, holder, _ = opened
    with guest.held():
        guest.paging()
        before = commands(guest)
        assert guest.vmcoreinfo() is guest.vmcoreinfo()
        guest.paging()
        assert commands(guest) == before
        assert len(guest.memory._cache) < 16
    with guest.held():
        guest.forms()
        assert commands(guest) == before
    assert len(holder.warnings) == 1


def test_the_note_for_whoever_wants_it(
    kernel_ram: tuple[FakeKernel, FakeRam], opened: tuple[Guest, Holder, ShimGuest]
) -> None:
    info = opened[0].vmcoreinfo()
    assert info is not None
    assert (info.gpa, info.text.encode()) == (NOTE, kernel_ram[0].text)


def test_what_the_user_names_is_not_searched_for(
    kernel_ram: tuple[FakeKernel, FakeRam],
) -> None:
    kernel, ram = kernel_ram
    guest, holder = open_fake(launch(ram), no_registers=ES, cr3=kernel.root_gpa)
    assert guest.translate(kernel.data_gva).gpa == kernel.data_gpa
    assert commands(guest) <= 4
    assert not any("found" in text for text in holder.warnings)
    info = guest.vmcoreinfo()  # through the named tables
    assert info is not None
    assert info.gpa == NOTE


def test_no_kernel_is_said_with_what_was_done_and_what_to_do() -> None:
    fake = launch(FakeRam(4 * MIB, CBIT))
    told: list[tuple[int, int]] = []
    guest, _ = open_fake(fake, no_registers=ES, search_pages=300, searching=lambda *at: told.append(at))
    for _ in range(2):
        with pytest.raises(errors.RegistersUnavailable) as caught:
            guest.paging()
        assert caught.value.message.startswith(ES)
        # two samples and two chunks; the next would go beyond the limit
        assert (
            "258 pages of the guest were searched, which is the limit: 1024 are there" in caught.value.message
        )
        assert "--cr3" in (caught.value.help or "")
        assert "--search-limit" in (caught.value.help or "")
    assert commands(guest) == decrypts(fake) == 258
    assert told[-1] == (258, 300)
    assert guest.vmcoreinfo() is None


def test_two_kernels_are_an_error_that_names_both() -> None:
    ram = FakeRam(32 * MIB, CBIT)
    one = ram.add_kernel(data_gpa=8 * MIB, note_gpa=NOTE)
    two = ram.add_kernel(data_gpa=16 * MIB, note_gpa=NOTE + 0x4000)
    guest, _ = open_fake(launch(ram), no_registers=ES)
    for _ in range(2):
        with pytest.raises(errors.BadGuestData) as caught:
            guest.translate(one.data_gva)
        assert f"{one.root_gpa:#x}" in caught.value.message
        assert f"{two.root_gpa:#x}" in caught.value.message


def test_a_note_that_knows_another_cbit_is_used_with_a_warning() -> None:
    ram = FakeRam(16 * MIB, CBIT)
    kernel = ram.add_kernel(data_gpa=8 * MIB)
    text = kernel.text.replace(b"sme_mask)=%d" % (1 << CBIT), b"sme_mask)=0") + b"CRASHTIME=1\n"
    ram.add_kernel(data_gpa=8 * MIB, note_gpa=NOTE)
    ram.put(NOTE + 4, len(text).to_bytes(4, "little"))
    ram.put(NOTE + 24, text)
    guest, holder = open_fake(launch(ram), no_registers=ES)
    assert guest.paging().root_gpa == kernel.root_gpa
    assert any("sme_mask 0x0" in said for said in holder.warnings)
    assert any("has crashed" in said for said in holder.warnings)
