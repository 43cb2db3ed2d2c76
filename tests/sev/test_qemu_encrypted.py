"""Unmodified QEMU with ``-object sev-guest`` on the pretend SEV host, filled with the lab's Linux, encrypted."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sevkvm.host.deputy import Deputy
from sevkvm.host.kvm import VmFd
from sevkvm.lab.files import mapped
from sevkvm.lab.initrd import KEEPERS
from sevkvm.lab.keeper import SECRET_GVA
from sevkvm.lab.sealed import SealedLinux
from tests.support.kdumpread import KdumpFile
from tests.support.linux import require_sealed_linux
from tests.support.qemu import QemuVmm, require_kvm_qemu
from tests.support.qemu_sealed import sealed_qemu
from tests.support.sevhost import sev_host

pytestmark = [pytest.mark.kvm, pytest.mark.sev]

VARIANTS: dict[str, dict[str, Any]] = {
    "plain-ram": {},
    "memfd-sandboxed": {"memfd": True, "sandbox": True},
    "pc": {"machine": "pc"},
}


@pytest.fixture(scope="module")
def linux() -> SealedLinux:
    require_kvm_qemu()
    return require_sealed_linux()


@pytest.fixture(scope="module", params=VARIANTS)  # nothing here changes the guest
def vmm(request: pytest.FixtureRequest, linux: SealedLinux) -> Iterator[QemuVmm]:
    with (
        sev_host() as host,
        sealed_qemu(linux, popen=host.popen, sev_policy=0, **VARIANTS[request.param]) as vmm,
    ):
        yield vmm


def test_ciphertext_outside_and_plaintext_through_the_kernel(linux: SealedLinux, vmm: QemuVmm) -> None:
    ram = mapped(linux.ram)
    (banner,) = linux.image.landmarks
    assert "state: launch-secret" in vmm.hmp("info sev")
    hva = vmm.gpa2hva(0)
    with open(f"/proc/{vmm.pid}/mem", "rb") as memory:
        memory.seek(hva + banner.gpa)
        assert b"Linux" not in memory.read(banner.nbytes)
    with Deputy(vmm.pid) as port:
        vm = VmFd(port, vmm.vm_fd)
        for first, end in linux.plain.private_ranges:
            for gpa in range(first, end, port.scratch_nbytes):
                nbytes = min(port.scratch_nbytes, end - gpa)
                vm.sev_dbg_decrypt(hva + gpa, port.scratch_hva, nbytes)
                assert port.read(port.scratch_hva, nbytes) == ram[gpa : gpa + nbytes], hex(gpa)


def sevkvm(command: str, vmm: QemuVmm, linux: SealedLinux, *words: str) -> bytes:
    """One command of the program, attached to the VMM from outside; its stdout."""
    # CPUID of this processor cannot tell the C-bit: it has none.
    guest = ["--pid", str(vmm.pid), "--vm-fd", str(vmm.vm_fd), "--cbit-pos", str(linux.seal.cbit_pos)]
    argv = [sys.executable, "-m", "sevkvm", command, *guest, "--qmp", vmm.qmp_path, *words]
    done = subprocess.run(argv, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def test_a_dump_is_the_ram_byte_for_byte(linux: SealedLinux, vmm: QemuVmm, tmp_path: Path) -> None:
    sevkvm("dump", vmm, linux, "--format", "raw", "-o", str(tmp_path / "dump"))
    dump, ram = mapped(tmp_path / "dump"), mapped(linux.ram)
    for first, end in linux.plain.private_ranges:
        assert dump[first:end] == ram[first:end]
    assert "VM status: paused" in vmm.hmp("info status")


def test_each_process_shows_its_own_secret(linux: SealedLinux, vmm: QemuVmm) -> None:
    for keeper in KEEPERS:
        root = hex(linux.keeper_roots[keeper.name])
        said = sevkvm("x", vmm, linux, "--cr3", root, "/64xb", hex(SECRET_GVA)).decode()
        numbers = [word for line in said.splitlines() for word in line.partition(": ")[2].split()]
        assert bytes(int(number, 16) for number in numbers) == keeper.secret


def test_the_vcpus_own_tables_lead_to_the_kernel(linux: SealedLinux, vmm: QemuVmm) -> None:
    (banner,) = linux.image.landmarks
    said = sevkvm("translate", vmm, linux, hex(banner.gva)).decode()
    assert f"gpa {banner.gpa:#x}" in said
    assert "private" in said


def test_kdump_files_hold_the_pages_of_the_raw_dump(linux: SealedLinux, vmm: QemuVmm, tmp_path: Path) -> None:
    sevkvm("dump", vmm, linux, "--format", "raw", "-o", str(tmp_path / "raw"))
    raw = mapped(tmp_path / "raw")
    cbits = int.from_bytes((1 << linux.seal.cbit_pos).to_bytes(8, "little") * 512, "little")
    for cbit in ("keep", "strip"):
        sevkvm("dump", vmm, linux, "--format", "kdump", "--cbit", cbit, "-o", str(tmp_path / cbit))
        file, changed = KdumpFile(tmp_path / cbit), 0
        assert sorted(file.pages) == file.ram
        assert len(file.pages) * 4096 > linux.plain.machine.ram_nbytes - (1 << 20)
        for pfn, (page, _, _) in file.pages.items():
            kept = raw[pfn * 4096 : (pfn + 1) * 4096]
            if page != kept:  # a table, which lost the C-bit and nothing else
                assert (int.from_bytes(kept, "little") ^ int.from_bytes(page, "little")) & ~cbits == 0
                changed += 1
        assert bool(changed) == (cbit == "strip")
    filtered = ["--format", "kdump", "--exclude", "31", "--json", "-o", str(tmp_path / "filtered")]
    told = json.loads(sevkvm("dump", vmm, linux, *filtered))
    few = KdumpFile(tmp_path / "filtered")
    assert told["complete"]
    assert sum(told["excluded"].values()) == 4096 * (len(file.dumped) - len(few.dumped)) > 64 << 20
    assert all(few.pages[pfn][0] == file.pages[pfn][0] for pfn in few.dumped)  # file: the stripped one
