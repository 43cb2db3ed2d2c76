"""A whole Guest over the pretend host in our own process: translation, reading, registers, and what they cost."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field, replace

import pytest

from sevkvm import errors
from sevkvm.abi.policy import Policy
from sevkvm.abi.policybits import POLICY_ES, POLICY_NODBG
from sevkvm.guest import Guest
from sevkvm.guestparts import GuestParts
from sevkvm.host.kvm import VcpuFd, VmFd
from sevkvm.lab.demo import DemoOptions, demo_image
from sevkvm.lab.image import Image
from sevkvm.memory.guest import GuestMemory
from sevkvm.memory.hva import HvaSource
from sevkvm.memory.policy import SevInfo, SevKind, ask_kernel, require_debug
from sevkvm.memory.sevdbg import SevDbgSource
from sevkvm.memory.source import Slot, SlotMap
from sevkvm.shim.port import FakeGuest, launch_guest

CBIT = 51
MIB = 1 << 20


@dataclass
class Holder:
    """Counts holds."""

    holds: int = 0
    held: bool = False
    warnings: list[str] = field(default_factory=list)

    def hold(self) -> None:
        assert not self.held
        self.held = True
        self.holds += 1

    def release(self) -> None:
        assert self.held
        self.held = False


def launch(image: Image, policy: int | None = 0, *, es: bool = False) -> FakeGuest:
    ram = {slot.gpa: image.plaintext(slot.gpa, slot.nbytes) for slot in image.slots}
    shared = [(region.gpa, region.nbytes) for region in image.regions if not region.private]
    fake = launch_guest(ram, policy=policy, shared=shared, vcpus=len(image.vcpus), es=es)
    for index, init in enumerate(image.vcpus):
        fake.vcpu(index).regs = init.regs
        fake.vcpu(index).sregs = init.sregs
    return fake


def open_fake(fake: FakeGuest, **parts: object) -> tuple[Guest, Holder]:
    vm = VmFd(fake.port, fake.vm_fd)
    info = ask_kernel(vm)
    if info.encrypted:
        info = replace(info, cbit_pos=CBIT, cbit_source="option")
    slots = SlotMap(Slot(*slot) for slot in fake.slots)
    holder = Holder()
    settings = {
        "sev": info,
        "memory": GuestMemory(slots, HvaSource(fake.port), SevDbgSource(vm) if info.encrypted else None),
        "vcpus": [VcpuFd(fake.port, fd, index) for index, fd in enumerate(fake.vcpu_fds)],
        **parts,
    }
    guest = Guest(
        GuestParts(
            pid=1,
            vm_fd=fake.vm_fd,
            name="fake",
            slots=slots,
            holder=holder,
            costs=lambda: {"ioctls": len(fake.port.ioctls)},
            warn=holder.warnings.append,
            **settings,  # type: ignore[arg-type]
        )
    )
    return guest, holder


@pytest.fixture(scope="module")
def image() -> Image:
    return demo_image(DemoOptions(memory_nbytes=8 * MIB, cbit_pos=CBIT, vcpus=2, pcid=True))


@pytest.fixture
def fake(image: Image) -> FakeGuest:
    return launch(image)


def commands(guest: Guest) -> int:
    return guest.stats()["firmware_commands"]


def decrypts(fake: FakeGuest) -> int:
    """What the firmware itself has counted."""
    return fake.port.kernel.firmware.counts["DBG_DECRYPT"]


def test_a_cold_translation_costs_four_commands_and_its_neighbour_none(image: Image, fake: FakeGuest) -> None:
    guest, _ = open_fake(fake)
    mapping = next(m for m in image.mappings if m.page_nbytes == 4096 and m.private)
    with guest.held():
        assert guest.translate(mapping.gva).gpa == mapping.gpa
        assert (commands(guest), decrypts(fake)) == (4, 4)
        guest.translate(mapping.gva ^ 0x1000)
        assert (commands(guest), decrypts(fake)) == (4, 4)
        assert guest.stats()["table_commands"] == 4


def test_every_mapping_of_the_image(image: Image, fake: FakeGuest) -> None:
    guest, _ = open_fake(fake)
    with guest.held():
        for mapping in image.mappings:
            hit = guest.translate(mapping.gva + 0x123)
            assert hit.gpa == mapping.gpa + 0x123
            assert (hit.private, hit.writable, hit.user, hit.nx) == (
                mapping.private,
                mapping.writable,
                mapping.user,
                mapping.nx,
            )
        for miss in image.misses:
            assert guest.translate(miss.gva).gpa is None


def test_private_and_shared_bytes_by_virtual_address(image: Image, fake: FakeGuest) -> None:
    guest, _ = open_fake(fake)
    for landmark in image.landmarks:
        expected = image.plaintext(landmark.gpa, landmark.nbytes)
        assert guest.read_virtual(landmark.gva, landmark.nbytes) == expected
    # and the host's own view of a private one is noise
    secret = image.landmark("secret")
    assert fake.port.read(fake.hva(secret.gpa), secret.nbytes) != image.plaintext(secret.gpa, secret.nbytes)


def test_reading_all_private_ram_costs_one_command_a_page(image: Image, fake: FakeGuest) -> None:
    guest, _ = open_fake(fake)
    pages = 0
    with guest.held():
        for gpa, nbytes in image.private_ranges():
            assert guest.memory.read(gpa, nbytes) == image.plaintext(gpa, nbytes)
            pages += nbytes // 4096
    assert commands(guest) == decrypts(fake) == pages


def test_without_the_tables_of_a_page_a_read_names_the_first_bad_byte(image: Image, fake: FakeGuest) -> None:
    guest, _ = open_fake(fake)
    miss = next(miss for miss in image.misses if miss.gva >> 63)
    with pytest.raises(errors.PageNotPresent) as caught:
        guest.read_virtual(miss.gva, 8)
    assert caught.value.address == miss.gva
    assert caught.value.level == guest.translate(miss.gva).steps[-1].level


def test_registers_are_read_once_while_held_and_held_no_longer(image: Image, fake: FakeGuest) -> None:
    guest, holder = open_fake(fake)
    states = guest.registers()
    assert [state.regs for state in states] == [init.regs for init in image.vcpus]
    assert (holder.holds, holder.held) == (1, False)
    with guest.held():
        before = len(fake.port.ioctls)
        guest.registers()
        guest.registers()
        assert len(fake.port.ioctls) - before == 6  # two vCPUs, three ioctls each, once
        with guest.held():
            assert holder.holds == 2


def test_cbit_and_pcid_are_taken_off_cr3(image: Image, fake: FakeGuest) -> None:
    guest, _ = open_fake(fake)
    cr3 = guest.registers()[0].sregs.cr3
    assert cr3 >> CBIT & 1
    assert cr3 & 0xFFF
    form = guest.paging()
    assert form.root_gpa == cr3 & ~(1 << CBIT) & ~0xFFF
    assert form.levels == 4


def test_cr3_overrides_and_vcpu_chooses(image: Image, fake: FakeGuest) -> None:
    root = image.vcpus[0].sregs.cr3
    guest, _ = open_fake(fake, cr3=root, vcpu=1)
    secret = image.landmark("secret")
    assert guest.read_virtual(secret.gva, 16) == image.plaintext(secret.gpa, 16)
    guest, _ = open_fake(fake, vcpu=7)
    with pytest.raises(errors.UsageError, match="no vCPU 7"):
        guest.paging()


def test_an_unknown_cbit_is_refused_where_it_is_needed(fake: FakeGuest) -> None:
    guest, _ = open_fake(fake, sev=SevInfo(SevKind.SEV, Policy(0)))
    with pytest.raises(errors.PlatformUnsupported) as caught:
        guest.translate(0)
    assert caught.value.exit_code == errors.EXIT_FORBIDDEN
    assert caught.value.help
    assert "--cbit-pos" in caught.value.help
    assert guest.memory.read(0x1000, 8)  # physical memory needs none


def test_nodbg_is_refused_before_anything_is_decrypted(image: Image) -> None:
    fake = launch(image, policy=POLICY_NODBG)
    with pytest.raises(errors.DebugForbidden) as caught:
        require_debug(ask_kernel(VmFd(fake.port, fake.vm_fd)))
    assert caught.value.exit_code == errors.EXIT_FORBIDDEN
    assert decrypts(fake) == 0
    # and if somebody asks all the same, the firmware's refusal is named
    guest, _ = open_fake(fake)
    with pytest.raises(errors.FirmwareError, match=r"POLICY_FAILURE \(0x07\)") as refused:
        guest.memory.read(0x1000, 8)
    assert refused.value.exit_code == errors.EXIT_FORBIDDEN


def test_a_plain_guest_is_read_directly() -> None:
    image = demo_image(DemoOptions(memory_nbytes=8 * MIB))
    fake = launch(image, policy=None)
    guest, _ = open_fake(fake)
    assert guest.sev == SevInfo(SevKind.NONE)
    secret = image.landmark("secret")
    assert guest.read_virtual(secret.gva, secret.nbytes) == image.plaintext(secret.gpa, secret.nbytes)
    assert commands(guest) == 0


def test_a_sev_es_guest_has_no_registers_but_its_memory_can_be_read(image: Image) -> None:
    fake = launch(image, policy=POLICY_ES, es=True)
    guest, holder = open_fake(fake, no_registers="encrypted", cr3=image.vcpus[0].sregs.cr3)
    assert guest.sev.kind is SevKind.SEV_ES
    with pytest.raises(errors.RegistersUnavailable):
        guest.registers()
    secret = image.landmark("secret")
    assert guest.read_virtual(secret.gva, 16) == image.plaintext(secret.gpa, 16)
    assert any("4-level" in text for text in holder.warnings)


def test_the_kernels_refusal_is_told_from_the_firmwares(fake: FakeGuest) -> None:
    vm = VmFd(fake.port, fake.vm_fd)
    with pytest.raises(errors.IoctlError) as caught:
        vm.sev_dbg_decrypt(0xDEAD0000, fake.port.scratch_hva, 4096)
    assert caught.value.errno == errno.ENOMEM
    with pytest.raises(errors.IoctlError) as caught:
        VmFd(fake.port, 999).sev_guest_status()
    assert caught.value.errno == errno.EBADF


@pytest.mark.parametrize(
    ("src", "dst", "nbytes"), [(8, 0, 16), (0, 16, 16), (0, 0, 8), (0, 0, 0), (4096, 16, 32)]
)
def test_what_an_old_kernel_would_corrupt_is_never_issued(
    fake: FakeGuest, src: int, dst: int, nbytes: int
) -> None:
    vm = VmFd(fake.port, fake.vm_fd)
    before = len(fake.port.ioctls)
    with pytest.raises(ValueError, match="16-byte"):
        vm.sev_dbg_decrypt(fake.hva(0) + src, fake.port.scratch_hva + dst, nbytes)
    assert len(fake.port.ioctls) == before


@pytest.mark.parametrize(
    ("gpa", "nbytes"), [(0x100001, 5), (0x100FFF, 2), (0x100010, 4096), (0x110FF3, 70_001)]
)
def test_any_offset_and_length(image: Image, fake: FakeGuest, gpa: int, nbytes: int) -> None:
    guest, _ = open_fake(fake)
    assert guest.memory.read(gpa, nbytes) == image.plaintext(gpa, nbytes)


def test_what_is_begun_ahead_is_used_and_costs_nothing_twice(image: Image, fake: FakeGuest) -> None:
    guest, _ = open_fake(fake)
    memory, chunk = guest.memory, 512 << 10
    start, end = 0x280000, 0x280000 + 3 * chunk
    buffer = memoryview(bytearray(chunk))
    with guest.held():
        for gpa in range(start, end, chunk):
            assert memory.readinto(gpa, True, buffer, ahead=end - gpa - chunk) == chunk
            assert bytes(buffer) == image.plaintext(gpa, chunk)
        assert commands(guest) == decrypts(fake) == (end - start) // 4096


def test_what_was_begun_ahead_does_not_stand_in_the_way(image: Image, fake: FakeGuest) -> None:
    guest, _ = open_fake(fake)
    chunk = 512 << 10
    buffer = memoryview(bytearray(chunk))
    guest.memory.readinto(0x300000, True, buffer, ahead=chunk)
    assert len(guest.registers()) == 2
    guest.memory.readinto(0x300000, True, buffer, ahead=chunk)
    assert guest.memory.read(0x100000, 64) == image.plaintext(0x100000, 64)


def test_a_guest_that_runs_is_read_afresh_and_one_that_stands_still_is_not(fake: FakeGuest) -> None:
    guest, _ = open_fake(fake)
    shared_gpa = 0x104000

    def change(byte: int) -> None:
        fake.port.write(fake.hva(shared_gpa), bytes([byte]) * 16)

    secret_gva, shared_gva = 0xFFFF888000100000, 0xFFFF888000104000
    form = guest.paging()  # given, so that nobody has to stop the guest for its registers
    change(1)
    with guest.held():
        assert guest.read_virtual(shared_gva, 16, form) == b"\1" * 16
        before = commands(guest)
        guest.read_virtual(secret_gva, 16, form)
        guest.read_virtual(secret_gva, 16, form)
        assert commands(guest) - before == 1
    change(2)
    assert guest.read_virtual(shared_gva, 16, form) == b"\2" * 16
    change(3)
    assert guest.read_virtual(shared_gva, 16, form) == b"\3" * 16
