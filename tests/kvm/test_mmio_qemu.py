"""Device registers, read by an unmodified QEMU because we ask for it: its own trace counts every access."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.build import ROOT
from tests.support.counting import CountingGuest, counting_guest
from tests.support.gdb import gdb, gdbserver, require_gdb
from tests.support.qemu import QemuVmm, qemu, require_kvm_qemu

pytestmark = pytest.mark.kvm

HPET, APIC, IOAPIC, NOTHING = 0xFED00000, 0xFEE00000, 0xFEC00000, 0xD0000000
TRACED = "memory_region_ops_read"
# IA-PC HPET specification 1.0a, section 2.3.4: vendor, 64 bits, three timers, revision; ticks of 10 ns, in fs
CAPABILITIES = (0x8086A201, 10_000_000)


class Accesses:
    """The reads of devices from ``first`` on that QEMU has traced since the last look."""

    def __init__(self, vmm: QemuVmm, first: int = HPET) -> None:
        self._vmm = vmm
        self._first = first
        self._seen = 0
        vmm.hmp(f"trace-event {TRACED} on")
        self.new()

    def new(self) -> list[tuple[int, int]]:
        """(gpa, nbytes) of each."""
        text = self._vmm.stderr()
        told = re.findall(rf"^{TRACED} .* addr (0x[0-9a-f]+) .* size (\d+) ", text[self._seen :], re.M)
        self._seen = len(text)
        return [(int(gpa, 16), int(size)) for gpa, size in told if int(gpa, 16) >= self._first]


@pytest.fixture(scope="module")
def vmm() -> Iterator[QemuVmm]:
    """At reset: no paging, virtual addresses are physical ones."""
    require_kvm_qemu()
    with qemu(cpus=2, sandbox=True) as vmm:
        yield vmm


@pytest.fixture
def accesses(vmm: QemuVmm) -> Accesses:
    return Accesses(vmm)


def guest_of(vmm: QemuVmm) -> list[str]:
    return ["--pid", str(vmm.pid), "--qmp", vmm.qmp_path]


def sevkvm(*words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "sevkvm", *words]
    return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60)


def each(first: int, nbytes: int, count: int) -> list[tuple[int, int]]:
    return [(first + at * nbytes, nbytes) for at in range(count)]


@pytest.mark.parametrize("command", ["x", "xp"])
def test_one_access_an_item_and_qemus_own_answer(vmm: QemuVmm, accesses: Accesses, command: str) -> None:
    said = sevkvm(command, *guest_of(vmm), "--mmio", "/6xw", hex(HPET))
    assert (said.returncode, said.stderr) == (0, "")
    assert accesses.new() == each(HPET, 4, 6)
    assert said.stdout == vmm.hmp(f"xp /6xw {HPET:#x}")
    assert said.stdout.startswith(f"00000000fed00000: 0x{CAPABILITIES[0]:08x} 0x{CAPABILITIES[1]:08x} ")
    accesses.new()
    told = json.loads(sevkvm(command, *guest_of(vmm), "--mmio", "--json", "/1xw", hex(HPET + 4)).stdout)
    assert (told["bytes"], told["device_reads"]) == (CAPABILITIES[1].to_bytes(4, "little").hex(), 1)
    assert accesses.new() == each(HPET + 4, 4, 1)


def monitor(vmm: QemuVmm, *lines: str, mmio: bool = True) -> subprocess.CompletedProcess[str]:
    words = [word for line in lines for word in ("-c", line)]
    return sevkvm("monitor", *guest_of(vmm), *(["--mmio"] if mmio else []), *words)


def test_as_wide_as_it_is_asked_for(vmm: QemuVmm, accesses: Accesses) -> None:
    """The local APIC of a guest under KVM is not QEMU's: it answers ones, to an access of any width."""
    lines = [f"xp /3xb {APIC:#x}", f"xp /3xh {APIC:#x}", f"xp /3xw {APIC:#x}"]
    said = monitor(vmm, *lines, f"xp /1xg {HPET:#x}")
    # an HPET takes four bytes at a time: QEMU makes two accesses of eight, as for the guest
    assert accesses.new() == [*each(APIC, 1, 3), *each(APIC, 2, 3), *each(APIC, 4, 3), *each(HPET, 4, 2)]
    quad = f"{HPET:016x}: 0x{CAPABILITIES[1]:08x}{CAPABILITIES[0]:08x}\n"
    assert said.stdout == "".join(vmm.hmp(line) for line in lines) + quad


def test_what_gives_no_answer(vmm: QemuVmm) -> None:
    reasons = {
        IOAPIC: "'kvm-ioapic' refuses the access",
        NOTHING: "neither RAM nor a device is there",
        HPET + 1: "'hpet' refuses the access",
    }
    lines = [f"xp /2xb {gpa:#x}" for gpa in reasons]
    said = monitor(vmm, *lines)
    assert said.returncode == 6
    assert said.stdout == "".join(vmm.hmp(line) for line in lines)
    assert said.stdout == "".join(f"{gpa:016x}: Cannot access memory\n" for gpa in reasons)
    for gpa, why in reasons.items():
        assert f"cannot access gpa {gpa:#x}: {why}" in said.stderr


def test_nothing_is_read_unless_that_was_asked_for(vmm: QemuVmm, accesses: Accesses) -> None:
    for command in ("x", "xp"):
        said = sevkvm(command, *guest_of(vmm), "/6xw", hex(HPET))
        assert said.returncode == 6
        assert said.stdout == f"{HPET:016x}: Cannot access memory\n"
        assert "--mmio" in said.stderr
    said = monitor(vmm, f"x /6xw {HPET:#x}", f"xp /6xw {HPET:#x}", mmio=False)
    assert said.stdout == f"{HPET:016x}: Cannot access memory\n" * 2
    assert said.stderr.count("--mmio") == 1
    assert accesses.new() == []


def test_without_a_monitor_it_says_what_is_missing(vmm: QemuVmm, tmp_path: Path) -> None:
    words = ["--qmp", str(tmp_path / "none"), "--slot", f"0:4M:{vmm.gpa2hva(0):#x}", "--cbit-pos", "51"]
    said = sevkvm("xp", "--pid", str(vmm.pid), *words, "--mmio", "/1xw", hex(HPET))
    assert said.returncode != 0
    assert "none" in said.stderr


def test_memory_that_the_slots_do_not_tell_of_is_not_asked_of_the_monitor(vmm: QemuVmm) -> None:
    """Of an encrypted guest it would be ciphertext."""
    words = ["--qmp", vmm.qmp_path, "--slot", f"0:4M:{vmm.gpa2hva(0):#x}"]
    said = sevkvm("xp", "--pid", str(vmm.pid), *words, "--mmio", "/1xw", "0x1000000")
    assert said.returncode == 6
    assert "'pc.ram' there is memory, of which the known slots do not tell" in said.stderr


def test_the_monitor(vmm: QemuVmm, accesses: Accesses) -> None:
    lines = [f"xp /3xw {HPET:#x}", f"x /3xw {HPET:#x}", f"x /2i {HPET:#x}", f"xp /2xw {HPET - 4:#x}"]
    said = monitor(vmm, *lines)
    assert said.returncode == 6
    assert accesses.new() == each(HPET, 4, 3) * 2
    expected = vmm.hmp(lines[0]) + vmm.hmp(lines[1].replace("x ", "xp ", 1))
    assert said.stdout == (
        expected + f"0x{HPET:08x}: unable to read memory\n" + f"{HPET - 4:016x}: Cannot access memory\n"
    )


def test_gdb_on_a_guest_that_the_vmm_has_paused(vmm: QemuVmm, accesses: Accesses, tmp_path: Path) -> None:
    require_gdb()
    with gdbserver(*guest_of(vmm), "--mmio", directory=tmp_path) as server:
        text = gdb(
            server.target,
            f"x/2xw {HPET:#x}",
            f"print/x *(unsigned long long *){HPET:#x}",
            f"dump memory /dev/null {HPET:#x} {HPET + 16:#x}",
            f"monitor xp /1xw {HPET:#x}",
            "maint packet Qqemu.PhyMemMode:1",
            f"x/1xw {HPET + 4:#x}",
            "x/4xb 0xfffffff0",
        )
    assert re.search(rf"^{HPET:#x}:\s+0x{CAPABILITIES[0]:08x}\s+0x{CAPABILITIES[1]:08x}$", text, re.M), text
    assert f"$1 = 0x{CAPABILITIES[1]:x}{CAPABILITIES[0]:08x}\n" in text
    assert f"Cannot access memory at address {HPET:#x}" in text
    assert f"{HPET:016x}: 0x{CAPABILITIES[0]:08x}\n" in text
    assert re.search(rf"^{HPET + 4:#x}:\s+0x{CAPABILITIES[1]:08x}$", text, re.M), text
    assert re.search(r"^0xfffffff0:\s+0xea", text, re.M), text
    assert accesses.new() == [*each(HPET, 4, 2) * 2, (HPET, 4), (HPET + 4, 4)]
    assert "devices are read 1, 2, 4 or 8 bytes at a time" in server.stderr()
    assert "VM status: paused" in vmm.hmp("info status")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CountingGuest]:
    require_kvm_qemu()
    with counting_guest(tmp_path_factory.mktemp("mmio"), cpus=2) as guest:
        yield guest


def test_of_a_guest_that_runs(running: CountingGuest) -> None:
    """The VMM answers between two moments of its vCPUs; the guest runs on."""
    for command in ("x", "xp"):
        said = sevkvm(command, *guest_of(running.vmm), "--mmio", "/2xw", hex(HPET))
        assert said.stdout == f"{HPET:016x}: 0x{CAPABILITIES[0]:08x} 0x{CAPABILITIES[1]:08x}\n"
        assert running.moves()


def test_gdb_alone_a_guest_that_runs_is_not_let_go_for_it(running: CountingGuest, tmp_path: Path) -> None:
    require_gdb()
    accesses = Accesses(running.vmm)
    with gdbserver(*guest_of(running.vmm), "--mmio", directory=tmp_path) as server:
        show = "x/xw 0x500"
        text = gdb(server.target, show, f"x/2xw {HPET:#x}", f"monitor xp /1xw {HPET:#x}", show)
        said = server.stderr()
    counts = re.findall(r"^0x500:\s+(0x[0-9a-f]+)", text, re.M)
    assert len(counts) == 2
    assert counts[0] == counts[1]
    assert f"Cannot access memory at address {HPET:#x}" in text
    assert f"{HPET:016x}: Cannot access memory" in text
    assert "pause the guest in the VMM's own monitor first" in said
    assert accesses.new() == []
    assert running.moves()


def test_gdb_with_its_stub_it_is_the_stub_that_holds(running: CountingGuest, tmp_path: Path) -> None:
    path = running.vmm.directory / "stub"
    running.vmm.hmp(f"gdbserver unix:{path},server=on,wait=off")
    require_gdb()
    accesses = Accesses(running.vmm)
    words = [*guest_of(running.vmm), "--upstream", f"unix:{path}", "--mmio"]
    with gdbserver(*words, directory=tmp_path) as server:
        show = "x/xw 0x500"
        text = gdb(server.target, show, f"x/2xw {HPET:#x}", f"monitor xp /1xw {HPET:#x}", show)
    counts = re.findall(r"^0x500:\s+(0x[0-9a-f]+)", text, re.M)
    assert len(counts) == 2
    assert counts[0] == counts[1]
    assert re.search(rf"^{HPET:#x}:\s+0x{CAPABILITIES[0]:08x}\s+0x{CAPABILITIES[1]:08x}$", text, re.M), text
    assert accesses.new() == [*each(HPET, 4, 2), (HPET, 4)]
    assert running.moves()
