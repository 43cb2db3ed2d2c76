"""Debian's gdb on encrypted guests through `sevkvm gdbserver`: a real Linux in QEMU, and the lab's small guest."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from sevkvm.lab.initrd import KEEPERS
from sevkvm.lab.keeper import SECRET_GVA
from sevkvm.lab.sealed import SealedLinux
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
    assert f'"{linux.plain.facts["version"][:40]}' in text
    assert quads(text)[:64] == linux.plain.facts["version"].encode()[:64]
    assert re.search(r"^=> 0x[0-9a-f]+:\t\w+", text, re.M), text
    assert "Cannot access memory" not in text
    assert "detached" in text


def test_each_process_by_its_own_tables(linux: SealedLinux, vmm: QemuVmm, tmp_path: Path) -> None:
    for keeper in KEEPERS:
        root = linux.keeper_roots[keeper.name]
        with gdbserver(*options(vmm, linux), "--cr3", hex(root), "--once", directory=tmp_path) as server:
            assert quads(gdb(server.target, f"x/64xb {SECRET_GVA:#x}")) == keeper.secret


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
