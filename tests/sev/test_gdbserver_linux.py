"""Debian's gdb on encrypted guests through `sevkvm gdbserver`: a real Linux in QEMU, and the lab's small guest."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from sevkvm.lab.initrd import KEEPERS
from sevkvm.lab.keeper import SECRET_GVA
from sevkvm.lab.sealed import SealedLinux
from tests.support.build import ROOT
from tests.support.gdb import gdb, gdbserver, require_gdb
from tests.support.killing import settle, shape
from tests.support.lab import lab_guest
from tests.support.linux import require_sealed_linux
from tests.support.qemu import QemuVmm, require_kvm_qemu
from tests.support.qemu_sealed import sealed_qemu
from tests.support.sevhost import require_kvm_mode, sev_host

pytestmark = pytest.mark.sev


@pytest.fixture(scope="module")
def linux() -> SealedLinux:
    require_kvm_qemu()
    require_gdb()
    return require_sealed_linux()


@pytest.fixture(scope="module")
def vmm(linux: SealedLinux) -> Iterator[QemuVmm]:
    with sev_host() as host, sealed_qemu(linux, popen=host.popen, sev_policy=0, sandbox=True) as vmm:
        yield vmm


def options(vmm: QemuVmm, linux: SealedLinux) -> list[str]:
    # CPUID of this processor cannot tell the C-bit: it has none
    return ["--pid", str(vmm.pid), "--qmp", vmm.qmp_path, "--cbit-pos", str(linux.seal.cbit_pos)]


def quads(text: str) -> bytes:
    """The memory that gdb's ``x/NNxb`` printed."""
    lines = re.findall(r"^0x[0-9a-f]+(?: <[^>]*>)?:((?:\s+0x[0-9a-f]{2})+)$", text, re.M)
    return bytes(int(word, 16) for line in lines for word in line.split())


def test_gdb_on_an_encrypted_linux(linux: SealedLinux, vmm: QemuVmm, tmp_path: Path) -> None:
    (banner,) = linux.image.landmarks
    before = settle(vmm.pid, shape(vmm.pid))
    with gdbserver(*options(vmm, linux), directory=tmp_path) as server:
        text = gdb(
            server.target,
            "info registers",
            "info threads",
            "x/2i $rip",
            f"x/s {banner.gva:#x}",
            f"x/64xb {banner.gva:#x}",
            f"monitor x /16xb {banner.gva:#x}",
            "x/2xg $rsp",
            "print $cr3",
            "print $efer",
            "maint packet Qqemu.PhyMemMode:1",
            f"x/s {banner.gpa:#x}",
            "detach",
        )
    assert settle(vmm.pid, before) == before
    registers = dict(re.findall(r"^(\w+) +(0x[0-9a-f]+)", text, re.M))
    state = linux.vcpus[0]
    for name in ("rax", "rbx", "rsp", "rip", "r15"):
        assert int(registers[name], 16) == getattr(state.regs, name), name
    assert int(registers["cr3"], 16) == state.sregs.cr3
    assert int(registers["gs_base"], 16) == state.sregs.gs.base
    assert "LMA" in text
    assert linux.plain.facts["version"].startswith("Linux version ")
    assert text.count(f'"{linux.plain.facts["version"][:40]}') == 2, text
    assert quads(text)[:64] == linux.plain.facts["version"].encode()[:64]
    assert re.search(r"^=> 0x[0-9a-f]+:\t\w+", text, re.M), text
    assert "Cannot access memory" not in text
    assert "detached" in text


def test_each_process_by_its_own_tables(linux: SealedLinux, vmm: QemuVmm, tmp_path: Path) -> None:
    for keeper in KEEPERS:
        root = linux.keeper_roots[keeper.name]
        with gdbserver(*options(vmm, linux), "--cr3", hex(root), "--once", directory=tmp_path) as server:
            assert quads(gdb(server.target, f"x/64xb {SECRET_GVA:#x}")) == keeper.secret


def test_the_kernels_own_names_without_a_vmlinux(linux: SealedLinux, vmm: QemuVmm, tmp_path: Path) -> None:
    """With KASLR; the truth is the guest's own /proc/kallsyms, and where its banner is."""
    file = tmp_path / "kernel.sym"
    before = settle(vmm.pid, shape(vmm.pid))
    with gdbserver(*options(vmm, linux), "--symbols", str(file), directory=tmp_path) as server:
        assert re.search(r"\d{5,} symbols of Linux 6\.\S+, read with \d+ firmware commands", server.stderr())
        gvas = {
            name.removeprefix("symbol."): int(gva, 16)
            for name, gva in linux.plain.facts.items()
            if name.startswith("symbol.")
        }
        text = gdb(
            server.target,
            *("bt 1", "break do_idle", "x/s &linux_banner", "print &init_task", "info symbol do_idle"),
            *("monitor sym $rip", "monitor addr init_task"),
            file=file,
        )
    assert settle(vmm.pid, before) == before
    assert f'{gvas["linux_banner"]:#x} <linux_banner>:\t"{linux.plain.facts["version"][:40]}' in text
    assert f"{gvas['init_task']:#x} <init_task>" in text
    assert f"0x{gvas['init_task']:016x}: init_task\n" in text
    assert "do_idle in section .text" in text
    (breakpoint_gva,) = re.findall(r"^Breakpoint 1 at (0x[0-9a-f]+)$", text, re.M)
    rip = linux.vcpus[0].regs.rip
    (frame,) = re.findall(rf"^#0 +{rip:#x} in (\S+) \(\)$", text, re.M)
    (label,) = re.findall(rf"^0x{rip:016x}: (\S+)$", text, re.M)
    assert label.partition("+")[0] == frame
    assert "warning" not in text
    with file.open("rb") as opened:
        (function,) = ELFFile(opened).get_section_by_name(".symtab").get_symbol_by_name("do_idle")
    # gdb may step over the function's first instructions
    assert 0 <= int(breakpoint_gva, 16) - function["st_value"] < function["st_size"]


def test_registers_of_a_sev_es_guest_are_unavailable_and_memory_is_not(tmp_path: Path) -> None:
    require_kvm_mode("auto")
    require_gdb()
    with sev_host() as host, lab_guest(policy=4, popen=host.popen) as guest:
        secret, gpa = next(
            (int(mark["gva"], 16), int(mark["gpa"], 16))
            for mark in guest.facts["landmarks"]
            if mark["name"] == "secret"
        )
        arguments = [*guest.facts["arguments"], "--cr3", guest.facts["cr3"]]
        with gdbserver(*arguments, directory=tmp_path) as server:
            text = gdb(
                server.target, "info registers rsp cr3", "info threads", f"x/64xb {secret:#x}", "x/i $rip"
            )
        assert "gdb shows them as unavailable" in server.stderr()
        assert re.search(r"^rsp +<unavailable>", text, re.M), text
        assert "vCPU 0, registers unknown" in text
        assert re.search(r"^cr3 +<unavailable>", text, re.M)
        assert quads(text) == guest.image.plaintext(gpa, 64)
        assert guest.process.poll() is None


def test_both_vcpus_of_an_encrypted_guest_that_runs(tmp_path: Path) -> None:
    require_kvm_mode("auto")
    require_gdb()
    with sev_host() as host, lab_guest(policy=0, vcpus=2, run=True, popen=host.popen) as guest:
        before = settle(guest.pid, shape(guest.pid))
        with gdbserver(*guest.facts["arguments"], directory=tmp_path) as server:
            for _ in range(2):
                text = gdb(server.target, "thread apply all x/2i $rip", "monitor xp /4xb 0x100000")
                # where they wait in front of it, and behind it where they really run
                assert len(re.findall(r"^=> .*\t(?:cli|hlt|jmp)", text, re.M)) == 2, text
                assert guest.image.plaintext(0x100000, 4) == bytes.fromhex(
                    "".join(re.findall(r"0x([0-9a-f]{2})\b", text.rpartition("0000000000100000:")[2])[:4])
                )
        assert settle(guest.pid, before) == before
        assert guest.process.poll() is None


def test_a_device_of_an_encrypted_linux(linux: SealedLinux, vmm: QemuVmm, tmp_path: Path) -> None:
    """By the address at which its kernel has mapped it: the walk is ours, the access QEMU's."""
    gpa = 0xFED00000  # the HPET
    argv = [sys.executable, "-m", "sevkvm", "monitor", *options(vmm, linux), "--mmio"]

    def monitor(*lines: str) -> str:
        words = [word for line in lines for word in ("-c", line)]
        return subprocess.run([*argv, *words], cwd=ROOT, check=True, capture_output=True, text=True).stdout

    mapped = re.search(rf"^([0-9a-f]{{16}}): {gpa:016x} ", monitor("info tlb"), re.M)
    assert mapped
    gva = int(mapped[1], 16)
    expected = vmm.hmp(f"xp /4xw {gpa:#x}")
    assert expected.startswith(f"{gpa:016x}: 0x8086a201 ")
    words = expected.partition(":")[2]
    (banner,) = linux.image.landmarks
    said = monitor(f"xp /4xw {gpa:#x}", f"x /4xw {gva:#x}", f"x /6cb {banner.gva:#x}")
    assert said.splitlines() == [
        expected.rstrip(),
        f"{gva:016x}:{words.rstrip()}",
        f"{banner.gva:016x}: 'L' 'i' 'n' 'u' 'x' ' '",
    ]
    with gdbserver(*options(vmm, linux), "--mmio", directory=tmp_path) as server:
        text = gdb(server.target, f"x/4xw {gva:#x}", f"x/6xb {banner.gva:#x}")
    shown = re.search(rf"^{gva:#x}:(.*)$", text, re.M)
    assert shown, text
    assert shown[1].split() == words.split()
    assert quads(text)[:6] == b"Linux "
