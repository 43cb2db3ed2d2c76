"""The monitor's answers are QEMU's, byte for byte, of a plain Linux; and, encrypted, those of the plain one."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sevkvm.attach import AttachOptions, open_guest
from sevkvm.attach.outside import Outside
from sevkvm.host.deputy import Deputy
from sevkvm.lab.sealed import SealedLinux
from sevkvm.monitor.monitor import Monitor
from sevkvm.monitor.runcontrol import RunControl
from tests.support.linux import require_sealed_linux
from tests.support.monitorlines import same
from tests.support.qemu import QemuVmm, qemu, require_kvm_qemu
from tests.support.qemu_sealed import sealed_qemu
from tests.support.vectors import load_vectors

pytestmark = pytest.mark.kvm


@pytest.fixture(scope="module")
def linux() -> SealedLinux:
    require_kvm_qemu()
    pytest.importorskip("capstone")
    return require_sealed_linux()


@pytest.fixture(scope="module")
def vmm(linux: SealedLinux) -> Iterator[QemuVmm]:
    with sealed_qemu(linux.plain) as running:
        yield running


@contextmanager
def monitor_of(vmm: QemuVmm, **options: int) -> Iterator[Monitor]:
    asked = AttachOptions(pid=vmm.pid, vm_fd=vmm.vm_fd, qmp=vmm.qmp_path, **options)
    with open_guest(asked) as guest:
        outside = Outside(vmm.pid, asked, pytest.fail)
        with RunControl(guest, outside) as control:
            yield Monitor(guest, outside, control)


@pytest.fixture(scope="module")
def monitor(vmm: QemuVmm) -> Iterator[Monitor]:
    with monitor_of(vmm) as monitor:
        yield monitor


def test_every_line_of_a_long_list(monitor: Monitor, vmm: QemuVmm, tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    lines = same("DIR")
    assert len(lines) >= 280
    for directory in (ours, theirs):
        directory.mkdir()
    for line in lines:
        said = monitor.execute(line.replace("DIR", str(ours))).replace(str(ours), "DIR")
        expected = vmm.hmp(line.replace("DIR", str(theirs))).replace(str(theirs), "DIR")
        assert said == expected, line
    assert {path.name for path in ours.iterdir()} == {"a", "b"}
    for path in ours.iterdir():
        assert path.read_bytes() == (theirs / path.name).read_bytes()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_vcpu_at_reset_is_shown_in_32_bits(linux: SealedLinux) -> None:
    at_reset = [
        "info registers",
        "info registers -a",
        "info registers 1",
        "x /i $pc",
        "x /i $eip",
        "print /x $pc",
    ]
    at_reset += ["info tlb", "info mem", "print $cs.base", "xp /2i 0xfff00", "gva2gpa 0x1234"]
    with qemu(cpus=2) as vmm, monitor_of(vmm) as monitor:
        for line in at_reset:
            assert monitor.execute(line) == vmm.hmp(line), line
        assert monitor.execute("cpu 1") == ""
        for line in ("info registers", "info cpus", "print $pc"):
            # QEMU remembers no vCPU from one question to the next on such a socket
            theirs = vmm.execute("human-monitor-command", **{"command-line": line, "cpu-index": 1})
            assert monitor.execute(line) == theirs.replace("\r\n", "\n"), line


def test_vector_registers(linux: SealedLinux) -> None:
    """Of a guest that uses AVX. QEMU shows YMM registers, their upper halves only if CPUID lets the guest have them."""
    if " avx " not in Path("/proc/cpuinfo").read_text():
        pytest.skip("this processor has no AVX")
    with sealed_qemu(linux.plain) as vmm:
        with Deputy(vmm.pid) as port:
            load_vectors(port, vmm.vcpu_fd(0))
        with monitor_of(vmm) as monitor:
            said = monitor.execute("info registers").splitlines()
        theirs = vmm.hmp("info registers").splitlines()
        assert len(said) == len(theirs)
        for ours, expected in zip(said, theirs, strict=True):
            if ours.startswith("YMM"):
                assert ours[:5] == expected[:5]
                assert ours.split()[2:] == expected.split()[2:]
            else:
                assert ours == expected
        (last,) = [line for line in said if line.startswith("YMM15=")]
        assert last.split()[:2] == ["YMM15=0001020304050607", "08090a0b0c0d0e0f"]


class TestNotAsQemuOnPurpose:
    def test_an_instruction_before_the_end_of_memory(
        self, monitor: Monitor, linux: SealedLinux, vmm: QemuVmm
    ) -> None:
        """QEMU reads ahead, and gives up up to 31 bytes early."""
        end = linux.plain.machine.ram_nbytes
        line = f"xp /40i {end - 16:#x}"
        assert vmm.hmp(line).count("\n") == 2
        said = monitor.execute(line).splitlines()
        assert said[-1] == f"0x{end:08x}: unable to read memory"
        assert sum(len(row[12:36].split()) for row in said[:-1]) == 16
        assert monitor.status == 6

    def test_registers_that_qemu_has_no_name_for(
        self, monitor: Monitor, linux: SealedLinux, vmm: QemuVmm
    ) -> None:
        vcpu = linux.plain.vcpus[0]
        for name, value in {
            "rip": vcpu.regs.rip,
            "cr3": vcpu.sregs.cr3,
            "idt.base": vcpu.sregs.idt.base,
        }.items():
            assert vmm.hmp(f"print /x ${name}").startswith("unknown register")
            assert monitor.execute(f"print /x ${name}") == f"0x{value:x}\n"

    def test_memory_that_is_not_there_is_not_saved(
        self, monitor: Monitor, vmm: QemuVmm, tmp_path: Path
    ) -> None:
        """QEMU writes zeros."""
        theirs = tmp_path / "theirs"
        assert vmm.hmp(f'pmemsave 0xfee00000 10 "{theirs}"') == ""
        ours = tmp_path / "ours"
        said = monitor.execute(f'pmemsave 0xfee00000 10 "{ours}"')
        assert said == "Error: Invalid addr 0x00000000fee00000/size 10 specified\n"
        assert list(tmp_path.iterdir()) == [theirs]

    def test_a_division_that_kills_qemu(self, monitor: Monitor) -> None:
        assert monitor.execute("print /x -9223372036854775808/-1") == "0x8000000000000000\n"

    def test_quit_leaves_the_guest(self, monitor: Monitor, vmm: QemuVmm) -> None:
        assert monitor.execute("quit") == ""
        assert monitor.over
        monitor.over = False
        assert vmm.hmp("info status") == "VM status: paused (prelaunch)\n"

    def test_dumps_are_ours(self, monitor: Monitor, linux: SealedLinux, tmp_path: Path) -> None:
        path = tmp_path / "core"
        assert monitor.execute(f"dump-guest-memory {path} 0x1000 0x2000") == ""
        data = path.read_bytes()
        assert data[:4] == b"\x7fELF"
        with linux.plain.ram.open("rb") as ram:
            assert data.endswith(os.pread(ram.fileno(), 0x2000, 0x1000))
        assert monitor.execute(f"dump-guest-memory -z {path}") == ""
        assert path.read_bytes()[:8] == b"KDUMP   "
        assert "length" in monitor.execute(f"dump-guest-memory {path} 0x1000 0")


def test_stop_and_cont_are_the_vmms(linux: SealedLinux) -> None:
    with qemu(stopped=False) as vmm, monitor_of(vmm) as monitor:
        assert monitor.execute("info status") == "VM status: running\n"
        assert monitor.execute("stop") == ""
        assert vmm.hmp("info status") == monitor.execute("info status") == "VM status: paused\n"
        assert monitor.execute("c") == ""
        assert vmm.hmp("info status") == "VM status: running\n"
