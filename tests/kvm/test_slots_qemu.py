"""Memory slots of a real QEMU; its own monitor is the judge of every byte."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

import pytest

from sevkvm import errors, native
from sevkvm.host import discovery, slots
from sevkvm.host.qmp import QmpMonitor
from sevkvm.host.slots import RawSlot
from tests.support.qemu import QemuVmm, qemu, require_kvm_qemu

pytestmark = pytest.mark.kvm

GIB = 1 << 30
SAMPLE = 4096


@pytest.fixture(autouse=True)
def _needs_qemu() -> None:
    require_kvm_qemu()


@pytest.fixture
def flash(tmp_path: Path) -> str:
    """A made-up 4 MiB of firmware, as QEMU's option wants it."""
    path = tmp_path / "flash.bin"
    path.write_bytes(os.urandom(4 << 20))
    return f"if=pflash,format=raw,readonly=on,file={path}"


def ask(vmm: QemuVmm) -> list[RawSlot]:
    with closing(QmpMonitor(vmm.qmp_path)) as monitor:
        return slots.from_monitor(monitor, vmm.pid)


def pmemsave(vmm: QemuVmm, gpa: int, nbytes: int) -> bytes:
    path = vmm.directory / "saved"
    vmm.execute("pmemsave", val=gpa, size=nbytes, filename=str(path))
    return path.read_bytes()


def mark_ram(vmm: QemuVmm, found: list[RawSlot]) -> None:
    """Different bytes at both ends of every piece of RAM, so that no offset can be wrong unseen."""
    for slot in found:
        if not slot.readonly:
            for offset in (0, slot.nbytes - 16):
                native.write(vmm.pid, slot.hva + offset, os.urandom(16))


def judge(vmm: QemuVmm, found: list[RawSlot]) -> None:
    mark_ram(vmm, found)
    for slot in found:
        for offset in {0, slot.nbytes // 2 & ~0xFFF, slot.nbytes - SAMPLE}:
            ours = native.read(vmm.pid, slot.hva + offset, SAMPLE)
            assert ours == pmemsave(vmm, slot.gpa + offset, SAMPLE), (slot, offset)


@pytest.mark.parametrize("machine", ["q35", "pc"])
@pytest.mark.parametrize("memfd", [False, True])
@pytest.mark.parametrize(
    "extra", [(), ("-device", "virtio-vga"), ("-machine", "smm=off")], ids=["plain", "vga", "nosmm"]
)
def test_slots_hold_what_the_guest_sees(machine: str, memfd: bool, extra: tuple[str, ...]) -> None:
    with qemu(machine=machine, memfd=memfd, extra=extra) as vmm:
        found = ask(vmm)
        judge(vmm, found)
        assert sum(slot.nbytes for slot in found if not slot.readonly) >= (64 << 20) - (384 << 10)
        last = found[-1]
        assert (last.gpa + last.nbytes, last.name, last.readonly) == (4 * GIB, "pc.bios", True)


@pytest.mark.parametrize(("machine", "low"), [("q35", 2 * GIB), ("pc", 3 * GIB)])
@pytest.mark.parametrize("memfd", [False, True])
def test_ram_above_4_gib(machine: str, low: int, memfd: bool) -> None:
    with qemu(machine=machine, ram="5G", memfd=memfd) as vmm:
        found = ask(vmm)
        judge(vmm, found)
        high = found[-1]
        assert (high.gpa, high.nbytes, high.readonly) == (4 * GIB, 5 * GIB - low, False)
        assert found[3].gpa + found[3].nbytes == low
        guess = slots.from_maps(vmm.pid)
        assert [(each.gpa, each.nbytes, each.hva) for each in guess.slots] == [
            (0, low, found[0].hva),
            (4 * GIB, 5 * GIB - low, high.hva),
        ]


@pytest.mark.parametrize("machine", ["q35", "pc"])
def test_flash_is_memory_that_can_be_read(machine: str, flash: str) -> None:
    with qemu(machine=machine, extra=("-drive", flash)) as vmm:
        found = ask(vmm)
        judge(vmm, found)
        (rom,) = (slot for slot in found if slot.name == "system.flash0")
        assert (rom.gpa, rom.nbytes, rom.readonly) == (4 * GIB - (4 << 20), 4 << 20, True)
        content = Path(flash.rpartition("=")[2]).read_bytes()
        assert native.read(vmm.pid, rom.hva, rom.nbytes) == content


def test_memory_on_two_nodes_is_two_blocks() -> None:
    nodes = []
    for node in (0, 1):
        nodes += ["-object", f"memory-backend-ram,id=node{node},size=32M", "-numa", f"node,memdev=node{node}"]
    with qemu(cpus=2, extra=nodes) as vmm:
        found = ask(vmm)
        judge(vmm, found)
        assert {slot.name for slot in found} >= {"node0", "node1"}
        with pytest.raises(errors.VmNotFound, match="mappings look like"):
            slots.from_maps(vmm.pid)


def test_a_plugged_dimm_is_found_and_announced() -> None:
    with qemu(ram="64M,slots=2,maxmem=1G") as vmm:
        before = ask(vmm)
        vmm.execute("object-add", **{"qom-type": "memory-backend-ram", "id": "more", "size": 128 << 20})
        vmm.execute("device_add", driver="pc-dimm", id="dimm0", memdev="more")
        (dimm,) = set(ask(vmm)) - set(before)
        assert (dimm.gpa, dimm.nbytes, dimm.name) == (4 * GIB, 128 << 20, "more")
        judge(vmm, [dimm])
        assert "DIMM" in slots.from_maps(vmm.pid).warning


def test_the_firmware_moves_memory_while_we_ask() -> None:
    """SeaBIOS copies itself to RAM and switches the windows below 1 MiB as we watch."""
    with qemu(stopped=False) as vmm:
        for _ in range(5):
            found = ask(vmm)
            assert any(slot.gpa <= 1 << 20 < slot.gpa + slot.nbytes and not slot.readonly for slot in found)
        vmm.execute("stop")
        judge(vmm, ask(vmm))


@pytest.mark.parametrize(
    ("machine", "memfd"),
    [
        ("q35", False),
        ("q35", True),
        ("pc", False),
        ("pc", True),
        ("pc-q35-5.2", False),
        ("pc-i440fx-4.0", False),
    ],
)
@pytest.mark.parametrize("ram", ["64M", "777M", "2815M", "2816M", "3583M", "3584M"])
def test_the_guess_agrees_with_the_monitor(machine: str, memfd: bool, ram: str) -> None:
    with qemu(machine=machine, memfd=memfd, ram=ram) as vmm:
        truth = ask(vmm)
        guess = slots.from_maps(vmm.pid)
        assert "guessed" in guess.warning
        guessed = {each.gpa: each for each in guess.slots}
        big = [slot for slot in truth if not slot.readonly and slot.gpa >= 1 << 20]
        assert [slot.gpa for slot in big] == [1 << 20, *sorted(guessed.keys() - {0})]
        for slot in big:
            piece = guessed[0] if slot.gpa == 1 << 20 else guessed[slot.gpa]
            assert slot.hva - slot.gpa == piece.hva - piece.gpa
            assert slot.gpa + slot.nbytes == piece.gpa + piece.nbytes


def test_another_vms_monitor_is_found_out() -> None:
    with qemu() as one, qemu() as two, closing(QmpMonitor(two.qmp_path)) as monitor:
        complaint = f"process {one.pid} has no such memory"
        with pytest.raises(errors.ProtocolError, match=complaint):
            slots.from_monitor(monitor, one.pid)


def test_an_emulated_guest_has_no_slots() -> None:
    with qemu(accel="tcg") as vmm:
        with pytest.raises(errors.ProtocolError, match="no guest memory that KVM uses"):
            ask(vmm)
        with pytest.raises(errors.VmNotFound, match="has no KVM VM open"):
            discovery.resolve(vmm.pid, None)
