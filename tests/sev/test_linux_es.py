"""A SEV-ES guest with a real Linux in QEMU: virtual addresses without registers and without --cr3."""

from __future__ import annotations

import json
import re
import struct
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from sevkvm.abi.policybits import POLICY_ES
from sevkvm.lab.files import mapped
from sevkvm.lab.sealed import SealedLinux
from tests.support.gdb import gdb, gdbserver, require_gdb
from tests.support.linux import require_sealed_linux
from tests.support.qemu import QemuVmm, require_kvm_qemu
from tests.support.qemu_sealed import sealed_qemu
from tests.support.sevhost import sev_host

pytestmark = [pytest.mark.kvm, pytest.mark.sev]


@pytest.fixture(scope="module")
def linux() -> SealedLinux:
    require_kvm_qemu()
    return require_sealed_linux()


def flash_image() -> bytes:
    """A firmware of nothing but halts, with the table in which QEMU looks for the reset address of SEV-ES vCPUs.

    Layout (OVMF's GUIDed table): ... data, length, GUID of each entry; total length, GUID of the table; 32 bytes.
    """
    reset_block = uuid.UUID("00f771de-1a7e-4fcb-890e-68c77e2fb44e").bytes_le
    footer = uuid.UUID("96b582de-1fb2-45f7-baea-a366c55a082d").bytes_le
    entry = struct.pack("<IH", 0xFFFF0000, 4 + 2 + 16) + reset_block
    table = entry + struct.pack("<H", len(entry) + 2 + 16) + footer
    return b"\xf4" * (0x10000 - 32 - len(table)) + table + b"\xf4" * 32


@pytest.fixture(scope="module")
def vmm(
    linux: SealedLinux, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[QemuVmm]:  # nothing here changes the guest
    flash: Path = tmp_path_factory.mktemp("es") / "flash"
    flash.write_bytes(flash_image())
    extra = ["-drive", f"if=pflash,format=raw,readonly=on,file={flash}"]
    with sev_host() as host, sealed_qemu(linux, popen=host.popen, sev_policy=POLICY_ES, extra=extra) as vmm:
        yield vmm


def sevkvm(command: str, vmm: QemuVmm, linux: SealedLinux, *words: str) -> subprocess.CompletedProcess[str]:
    # CPUID of this processor cannot tell the C-bit: it has none
    guest = ["--pid", str(vmm.pid), "--vm-fd", str(vmm.vm_fd), "--cbit-pos", str(linux.seal.cbit_pos)]
    argv = [sys.executable, "-m", "sevkvm", command, *guest, "--qmp", vmm.qmp_path, *words]
    return subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)


def test_translate_finds_the_kernels_tables_and_tells_what_it_cost(linux: SealedLinux, vmm: QemuVmm) -> None:
    (banner,) = linux.image.landmarks
    done = sevkvm("translate", vmm, linux, hex(banner.gva), "--stats", "--json")
    assert done.returncode == 0, done.stderr
    (answer,) = json.loads(done.stdout)
    assert int(answer["gpa"], 16) == banner.gpa
    assert answer["private"] is True
    found = re.search(
        r"4-level page tables of Linux (\S+), found at gpa (0x\w+) with (\d+) firmware", done.stderr
    )
    assert found, done.stderr
    assert linux.plain.facts["version"].startswith(f"Linux version {found[1]} ")
    assert int(found[2], 16) in linux.seal.roots
    stats = json.loads(done.stderr[done.stderr.index("{") :])["stats"]
    # one page in 512, the kernel's data, and a few more for this address
    samples = linux.plain.machine.ram_nbytes >> 21
    assert samples + 128 < int(found[3]) < samples + 4000
    assert int(found[3]) <= stats["firmware_commands"] <= int(found[3]) + 4


def test_x_reads_the_kernels_banner(linux: SealedLinux, vmm: QemuVmm) -> None:
    (banner,) = linux.image.landmarks
    done = sevkvm("x", vmm, linux, "/16xb", hex(banner.gva))
    assert done.returncode == 0, done.stderr
    numbers = [word for line in done.stdout.splitlines() for word in line.partition(": ")[2].split()]
    assert bytes(int(number, 16) for number in numbers) == b"Linux version 6."


def test_a_limit_too_small_is_said_with_what_to_do(linux: SealedLinux, vmm: QemuVmm) -> None:
    (banner,) = linux.image.landmarks
    done = sevkvm("translate", vmm, linux, hex(banner.gva), "--search-limit", "256K")
    assert done.returncode == 1
    assert "64 pages of the guest were searched, which is the limit" in done.stderr
    assert "--search-limit" in done.stderr
    assert "--cr3" in done.stderr


def test_its_memory_is_proved_to_be_encrypted(linux: SealedLinux, vmm: QemuVmm) -> None:
    canary = linux.plain.facts["version"]
    done = sevkvm("verify", vmm, linux, "--canary", canary, "--require", "es", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    checks = {check["id"]: check for check in json.loads(done.stdout)["checks"]}
    assert {name for name, check in checks.items() if check["outcome"] == "fail"} == set()
    assert {name for name, check in checks.items() if check["outcome"] == "pass"} >= {
        *("encrypted", "es", "private", "tweak"),
        *("canary-found", "canary-private", "canary-noise", "canary-hidden"),
    }
    assert {page["what"] for page in checks["private"]["pages"]} >= {"top page table", "page table"}
    assert canary not in done.stdout


def found_by_search(done: subprocess.CompletedProcess[str]) -> bool:
    """Nobody named the tables, and it was said where they are."""
    return "page tables of Linux" in done.stderr and "--cr3" not in " ".join(map(str, done.args))


def test_registers_are_absent_not_stale(linux: SealedLinux, vmm: QemuVmm) -> None:
    done = sevkvm("regs", vmm, linux)
    assert done.returncode != 0
    assert "its registers are encrypted" in done.stderr
    assert done.stdout == ""
    shown = sevkvm("status", vmm, linux, "--json")
    assert json.loads(shown.stdout)["sev"] == "sev-es"


def test_mem_and_tlb_list_the_kernels_mappings(linux: SealedLinux, vmm: QemuVmm) -> None:
    (banner,) = linux.image.landmarks
    page = banner.gva & ~0xFFF
    wanted = f"{page:#x}:+0x1000"
    for command in ("mem", "tlb"):
        done = sevkvm(command, vmm, linux, "--json", wanted)
        assert done.returncode == 0, done.stderr
        assert found_by_search(done)
        (mapping,) = json.loads(done.stdout)
        assert mapping["private"] is True
        if command == "tlb":
            assert int(mapping["gpa"], 16) + (banner.gva - int(mapping["gva"], 16)) == banner.gpa


def test_pages_tells_private_from_shared(linux: SealedLinux, vmm: QemuVmm) -> None:
    done = sevkvm("pages", vmm, linux, "--json")
    assert done.returncode == 0, done.stderr
    assert found_by_search(done)
    assert '"private"' in done.stdout
    assert '"table"' in done.stdout


def test_gdb_reads_and_has_no_registers(linux: SealedLinux, vmm: QemuVmm, tmp_path: Path) -> None:
    require_gdb()
    (banner,) = linux.image.landmarks
    options = ["--pid", str(vmm.pid), "--qmp", vmm.qmp_path, "--cbit-pos", str(linux.seal.cbit_pos)]
    with gdbserver(*options, directory=tmp_path) as server:
        said = gdb(server.target, f"x/s {banner.gva:#x}", "info registers rax rip", "detach")
    assert "Linux version 6." in said
    assert re.search(r"^rax +<unavailable>", said, re.M), said


def test_a_dump_of_it_opens_in_drgn(linux: SealedLinux, vmm: QemuVmm, tmp_path: Path) -> None:
    drgn = pytest.importorskip("drgn", reason="drgn not installed (pip install '.[readers]')")
    (banner,) = linux.image.landmarks
    core = tmp_path / "es.core"
    done = sevkvm("dump", vmm, linux, "--format", "elf", "-o", str(core))
    assert done.returncode in (0, 6), done.stderr
    assert found_by_search(done)
    program = drgn.Program()
    program.set_core_dump(str(core))
    assert program.read(banner.gva, 16) == b"Linux version 6."
    nbytes = 0x10000
    start = banner.gpa & ~0xFFFF
    assert program.read(start, nbytes, physical=True) == bytes(mapped(linux.ram)[start : start + nbytes])


def test_monitor_and_search(linux: SealedLinux, vmm: QemuVmm) -> None:
    (banner,) = linux.image.landmarks
    done = sevkvm("monitor", vmm, linux, "-c", f"gva2gpa {banner.gva:#x}", "-c", "info registers")
    assert hex(banner.gpa) in done.stdout, done.stderr
    assert "its registers are encrypted" in done.stdout + done.stderr
    assert "RIP=" not in done.stdout
    page = banner.gva & ~0xFFF
    hits = sevkvm("search", vmm, linux, "--gva", "Linux version 6", f"{page:#x}:+0x2000")
    assert hits.returncode == 0, hits.stderr
    assert f"{banner.gva:x}" in hits.stdout


def test_audit_says_what_it_could_not_know(linux: SealedLinux, vmm: QemuVmm) -> None:
    done = sevkvm("audit", vmm, linux, "--json")
    assert done.returncode in (0, 1), done.stderr
    assert "registers are encrypted" in done.stdout + done.stderr


def test_its_policy(linux: SealedLinux, vmm: QemuVmm) -> None:
    argv = [sys.executable, "-m", "sevkvm", "policy", "decode", "--pid", str(vmm.pid), "--json"]
    told = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    found = json.loads(told.stdout)
    assert (told.returncode, found["value"], found["source"]) == (0, hex(POLICY_ES), "firmware")
    alone = subprocess.run([*argv, "--command-line"], capture_output=True, text=True, timeout=60, check=False)
    assert json.loads(alone.stdout) | {"source": "firmware"} == found
