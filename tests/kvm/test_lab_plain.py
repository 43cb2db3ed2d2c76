"""The lab's plain guest on the real KVM, which also judges the page tables."""

from __future__ import annotations

import os
import re
import signal
import struct
import subprocess
from pathlib import Path

import pytest

from sevkvm import errors
from sevkvm.abi import kvm
from sevkvm.cli.lab import command
from sevkvm.lab import cpuid
from sevkvm.lab.demo import TEXT_GVA, DemoOptions, demo_image
from sevkvm.lab.emulator import Machine
from sevkvm.lab.ioctl import ioctl, open_kvm
from sevkvm.lab.ram import Backing
from sevkvm.lab.vcpu_thread import VcpuThread
from sevkvm.lab.vmm import LabVm, LaunchOptions, launched, set_registers
from tests.support.lab import lab_guest
from tests.support.linux import require_sealed_linux
from tests.support.qemu import require_kvm

pytestmark = pytest.mark.kvm

KVM_TRANSLATE = 0xC018AE85
_TRANSLATION = struct.Struct("<QQBBB5x")
SMALL = 8 << 20


@pytest.fixture(autouse=True)
def _kvm() -> None:
    require_kvm()


def translate(vcpu_fd: int, gva: int) -> int | None:
    data = bytearray(_TRANSLATION.pack(gva, 0, 0, 0, 0))
    ioctl(vcpu_fd, KVM_TRANSLATE, data)
    _, gpa, valid, _, _ = _TRANSLATION.unpack(data)
    return gpa if valid else None


def assert_memory_is_the_image(vm: LabVm) -> None:
    for slot, ram in zip(vm.image.slots, vm.ram, strict=True):
        assert ram[:] == vm.image.plaintext(slot.gpa, slot.nbytes), slot.name


@pytest.mark.parametrize("backing", list(Backing))
def test_kvm_keeps_the_registers_it_was_given(backing: Backing) -> None:
    image = demo_image(DemoOptions(SMALL, vcpus=2))
    with launched(image, LaunchOptions(backing=backing)) as vm:
        for fd, init in zip(vm.vcpu_fds, image.vcpus, strict=True):
            data = bytearray(kvm.REGS_NBYTES)
            ioctl(fd, kvm.KVM_GET_REGS, data)
            assert kvm.Regs.unpack(data) == init.regs
            data = bytearray(kvm.SREGS_NBYTES)
            ioctl(fd, kvm.KVM_GET_SREGS, data)
            sregs = kvm.Sregs.unpack(data)
            for name in ("cr0", "cr3", "cr4", "efer", "gdt", "idt"):
                assert getattr(sregs, name) == getattr(init.sregs, name), name
        assert image.vcpus[0].regs != image.vcpus[1].regs
        assert_memory_is_the_image(vm)


def test_kvm_translates_every_mapping_as_expected_and_nothing_else() -> None:
    image = demo_image(DemoOptions(SMALL))
    with launched(image, LaunchOptions()) as vm:
        (fd,) = vm.vcpu_fds
        kvm_fd = open_kvm()
        try:
            has_giant_pages = any(
                entry.function == 0x8000_0001 and entry.edx >> 26 & 1 for entry in cpuid.supported(kvm_fd)
            )
        finally:
            os.close(kvm_fd)
        for mapping in image.mappings:
            if mapping.page_nbytes == 1 << 30 and not has_giant_pages:
                continue  # this KVM calls such a page reserved
            last = mapping.page_nbytes - 1
            assert translate(fd, mapping.gva) == mapping.gpa, hex(mapping.gva)
            assert translate(fd, mapping.gva + last) == mapping.gpa + last, hex(mapping.gva)
        assert [translate(fd, miss.gva) for miss in image.misses] == [None] * len(image.misses)
        # KVM_TRANSLATE sets Accessed bits; they were set.
        assert_memory_is_the_image(vm)


def test_the_guest_really_executes_its_idle_loop(capsys: pytest.CaptureFixture[str]) -> None:
    with launched(demo_image(DemoOptions(SMALL)), LaunchOptions()) as vm:
        # Without an interrupt controller in the kernel the halt comes back to the VMM.
        kvm_fd = open_kvm()
        try:
            nbytes = ioctl(kvm_fd, kvm.KVM_GET_VCPU_MMAP_SIZE)
        finally:
            os.close(kvm_fd)
        thread = VcpuThread(vm.vcpu_fds[0], 0, nbytes)
        assert thread.join(10)
        assert thread.stop()
        data = bytearray(kvm.REGS_NBYTES)
        ioctl(vm.vcpu_fds[0], kvm.KVM_GET_REGS, data)
        assert kvm.Regs.unpack(data).rip == TEXT_GVA + 2
        assert_memory_is_the_image(vm)
    assert "exit reason 5" in capsys.readouterr().err


def test_the_process_reports_where_its_guest_is() -> None:
    with lab_guest(vcpus=2, pcid=True) as guest:
        links = {
            number: str(Path(f"/proc/{guest.pid}/fd/{number}").readlink())
            for number in (guest.vm_fd, *guest.facts["vcpu_fds"])
        }
        assert list(links.values()) == [
            "anon_inode:kvm-vm",
            "anon_inode:kvm-vcpu:0",
            "anon_inode:kvm-vcpu:1",
        ]
        assert [(s.gpa, s.nbytes, s.readonly) for s in guest.slots] == [
            (s.gpa, s.nbytes, s.readonly) for s in guest.image.slots
        ]
        for slot in guest.slots:
            expected = guest.image.plaintext(slot.gpa, slot.nbytes)
            assert guest.host_bytes(slot.gpa, slot.nbytes) == expected
        assert guest.facts["arguments"] == [
            *("--pid", str(guest.pid), "--vm-fd", str(guest.vm_fd)),
            *(
                word
                for s in guest.slots
                for word in ("--slot", f"0x{s.gpa:x}:0x{s.nbytes:x}:0x{s.hva:x}{':ro' * s.readonly}")
            ),
        ]
        assert guest.stop() == 0


def test_a_plain_linux_is_launched_from_its_image() -> None:
    machine = Machine()
    image = require_sealed_linux(machine).plain.image
    with lab_guest(linux=True, memory_mib=machine.ram_nbytes >> 20, image=image) as guest:
        for chunk_gpa in range(0, machine.ram_nbytes, 64 << 20):
            assert guest.host_bytes(chunk_gpa, 64 << 20) == image.plaintext(chunk_gpa, 64 << 20)
        banner = image.landmark("linux_banner")
        assert guest.host_bytes(banner.gpa, banner.nbytes).startswith(b"Linux version")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--plain", "--es"],
        ["--plain", "--policy", "1"],
        ["--plain", "--cbit-pos", "51"],
        ["--plain", "--linux", "--run"],
        ["--plain", "--linux", "--pcid"],
        ["--plain", "--kernel", __file__],
        ["--plain", "--memory", "3M"],
    ],
)
def test_options_that_contradict_each_other_are_usage_errors(arguments: list[str]) -> None:
    with pytest.raises(errors.UsageError):
        command.main(arguments, standalone_mode=False)


def test_memfd_backing_is_a_file_that_others_could_map() -> None:
    with lab_guest(backing="memfd") as guest:
        maps = Path(f"/proc/{guest.pid}/maps").read_text()
        names = re.findall(r"rw-s .*/memfd:(sevkvm-lab-\S+)", maps)
        assert sorted(names) == ["sevkvm-lab-ram.high", "sevkvm-lab-ram.low", "sevkvm-lab-rom"]


def test_running_vcpus_are_brought_back_when_the_input_ends() -> None:
    with lab_guest(vcpus=2, run=True) as guest:
        tasks = [(task / "comm").read_text() for task in Path(f"/proc/{guest.pid}/task").iterdir()]
        assert len(tasks) >= 3
        assert guest.stop() == 0
        assert "stopped" not in guest.stderr()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly(number: signal.Signals) -> None:
    with lab_guest() as guest:
        guest.process.send_signal(number)
        assert guest.process.wait(10) == 0


def test_seconds_end_it_although_its_input_stays_open() -> None:
    with lab_guest(extra=["--seconds", "0"]) as guest:
        assert guest.process.wait(10) == 0


def test_dev_null_as_input_does_not_end_it() -> None:
    def popen(argv: list[str], **settings: object) -> subprocess.Popen[bytes]:
        return subprocess.Popen(argv, **settings | {"stdin": subprocess.DEVNULL})  # type: ignore[call-overload]

    with lab_guest(popen=popen) as guest:
        with pytest.raises(subprocess.TimeoutExpired):
            guest.process.wait(0.3)
        guest.process.terminate()
        assert guest.process.wait(10) == 0


@pytest.mark.parametrize("cbit_pos", [47, 51])
def test_kvm_takes_a_cr3_with_the_cbit_from_a_vcpu_that_knows_of_it(cbit_pos: int) -> None:
    image = demo_image(DemoOptions(SMALL, cbit_pos=cbit_pos, pcid=True))
    kvm_fd = open_kvm()
    vm_fd = ioctl(kvm_fd, kvm.KVM_CREATE_VM)
    vcpu_fd = ioctl(vm_fd, kvm.KVM_CREATE_VCPU, 0)
    try:
        offered = cpuid.supported(kvm_fd)
        ids = cpuid.GuestCpu(cbit_pos).entries(offered, 0)
        ioctl(vcpu_fd, kvm.KVM_SET_CPUID2, bytearray(kvm.pack_cpuid2(ids)))
        set_registers(vcpu_fd, image.vcpus[0], offered)
        data = bytearray(kvm.SREGS_NBYTES)
        ioctl(vcpu_fd, kvm.KVM_GET_SREGS, data)
        assert kvm.Sregs.unpack(data).cr3 == 1 << cbit_pos | 0x10005
    finally:
        for fd in (vcpu_fd, vm_fd, kvm_fd):
            os.close(fd)


def test_five_levels_on_a_kvm_without_them_is_told_clearly() -> None:
    kvm_fd = open_kvm()
    try:
        if cpuid.has_la57(cpuid.supported(kvm_fd)):
            pytest.skip("this KVM has 5-level paging")
    finally:
        os.close(kvm_fd)
    with (
        pytest.raises(errors.IoctlError) as caught,
        launched(demo_image(DemoOptions(SMALL, levels=5)), LaunchOptions()),
    ):
        pass
    assert caught.value.request == "KVM_SET_SREGS"
    assert "--levels 4" in (caught.value.help or "")


def test_without_dev_sev_an_encrypted_guest_says_where_to_start_it() -> None:
    if Path("/dev/sev").exists():
        pytest.skip("this host has /dev/sev")
    with pytest.raises(errors.PlatformUnsupported) as caught:
        command.main(["--cbit-pos", "51"], standalone_mode=False)
    assert caught.value.exit_code == errors.EXIT_FORBIDDEN
    assert "sevkvm shim -- sevkvm lab" in (caught.value.help or "")
