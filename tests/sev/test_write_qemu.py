"""``sevkvm write`` on an unmodified, encrypted QEMU, and killed in the middle of it, again and again."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sevkvm.host.deputy import Deputy
from sevkvm.host.kvm import VmFd
from sevkvm.lab.files import mapped
from sevkvm.lab.sealed import SealedLinux
from tests.support.build import ROOT
from tests.support.killing import settle, shape
from tests.support.linux import require_sealed_linux
from tests.support.qemu import QemuVmm, require_kvm_qemu
from tests.support.qemu_sealed import sealed_qemu
from tests.support.sevhost import Host, host_cbit_pos, notes, strictest_host

pytestmark = [pytest.mark.kvm, pytest.mark.sev, pytest.mark.sev_write]

PAGE, BLOCK = 4096, 16
CBIT_POS = host_cbit_pos()
KILLS = 12
PLAYGROUND, PLAYGROUND_NBYTES = 0x200_0000, 512 * PAGE


@pytest.fixture(scope="module")
def linux() -> SealedLinux:
    require_kvm_qemu()
    return require_sealed_linux()


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    require_kvm_qemu()
    with strictest_host() as host:
        yield host


@pytest.fixture(scope="module")
def vmm(host: Host, linux: SealedLinux) -> Iterator[QemuVmm]:
    with sealed_qemu(linux, popen=host.popen, sev_policy=0, sandbox=True) as vmm:
        yield vmm


def argv(vmm: QemuVmm, command: str, *words: str) -> list[str]:
    guest = [
        "--pid",
        str(vmm.pid),
        "--vm-fd",
        str(vmm.vm_fd),
        "--cbit-pos",
        str(CBIT_POS),
        "--qmp",
        vmm.qmp_path,
    ]
    return [sys.executable, "-m", "sevkvm", command, *guest, *words]


def write(vmm: QemuVmm, *words: str, status: int = 0) -> tuple[Any, str]:
    """The JSON of ``sevkvm write``, if there is some, and stderr."""
    done = subprocess.run(
        argv(vmm, "write", "--json", *words), cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == status, done.stderr
    return json.loads(done.stdout) if done.stdout else None, done.stderr


def decrypted(vmm: QemuVmm, gpa: int, nbytes: int) -> bytes:
    """Memory through whole pages of DBG_DECRYPT, past everything that is tested here."""
    hva = vmm.gpa2hva(0)
    found = b""
    with Deputy(vmm.pid) as port:
        vm = VmFd(port, vmm.vm_fd)
        for at in range(gpa, gpa + nbytes, port.scratch_nbytes):
            count = min(port.scratch_nbytes, gpa + nbytes - at)
            vm.sev_dbg_decrypt(hva + at, port.scratch_hva, count)
            found += port.read(port.scratch_hva, count)
    return found


def test_kernel_text_by_its_name_and_nothing_else(host: Host, vmm: QemuVmm, linux: SealedLinux) -> None:
    (banner,) = linux.image.landmarks
    ram = mapped(linux.ram)
    told, said = write(vmm, hex(banner.gva + 6), "--string", "VERSION")
    assert told["old"] == b"version".hex()
    assert [(piece["gpa"], piece["private"]) for piece in told["pieces"]] == [(hex(banner.gpa + 6), True)]
    assert said == "sevkvm: 7 bytes written and read back\n"
    for first, end in linux.plain.private_ranges:
        expected = bytearray(ram[first:end])
        if first <= banner.gpa < end:
            at = banner.gpa + 6 - first
            expected[at : at + 7] = b"VERSION"
        found = decrypted(vmm, first, end - first)
        assert found == bytes(expected) or first_difference(found, expected) is None
    write(vmm, hex(banner.gva + 6), "--string", "version", "--expect", b"VERSION".hex())
    assert notes(host) == []
    assert "VM status: paused" in vmm.hmp("info status")


def stored(vmm: QemuVmm, hva: int) -> bytes:
    """A page as the host sees it."""
    with open(f"/proc/{vmm.pid}/mem", "rb", buffering=0) as memory:
        return os.pread(memory.fileno(), PAGE, hva)


def first_difference(found: bytes, expected: bytearray) -> str | None:
    """Instead of megabytes in a report."""
    return next(
        (hex(at) for at in range(0, len(found), BLOCK) if found[at : at + 16] != expected[at : at + 16]), None
    )


def test_a_page_table_is_warned_of(vmm: QemuVmm, linux: SealedLinux) -> None:
    root = linux.vcpus[0].sregs.cr3 & ~(1 << CBIT_POS) & ~0xFFF
    told, said = write(vmm, "--gpa", hex(root), "--bytes", "00", "--dry-run")
    assert "holds a page table" in said
    assert told["pieces"][0]["page_table"] is True


# QEMU 7.2 gives an encrypted guest its firmware below 4 GiB as RAM; below 1 MiB it is ROM
@pytest.mark.parametrize("gpa", ["0xc0000", "0xf0000"])
def test_rom_is_refused(vmm: QemuVmm, gpa: str) -> None:
    told, said = write(vmm, "--gpa", gpa, "--private", "--no-scan", "--bytes", "00", status=1)
    assert told is None
    assert "ROM or flash" in said


@pytest.mark.parametrize("gpa", ["0xfee00000", "0xfec00000", "0xb0000000"])
def test_mmio_is_refused(vmm: QemuVmm, gpa: str) -> None:
    for way in ("--shared", "--private"):
        told, said = write(vmm, "--gpa", gpa, way, "--no-scan", "--bytes", "00", status=1)
        assert told is None
        assert "MMIO or a hole" in said


def test_killed_in_the_middle(vmm: QemuVmm, tmp_path: Path) -> None:
    """Up to some page what was to be written, behind it what was there; QEMU runs on, and nothing of ours stays."""
    chance = random.Random(20261122)
    files = [tmp_path / "0", tmp_path / "1"]
    for number, path in enumerate(files):
        path.write_bytes(random.Random(number).randbytes(PLAYGROUND_NBYTES))
    words = ("--gpa", hex(PLAYGROUND), "--private", "--no-scan", "--json")
    saved = decrypted(vmm, PLAYGROUND, PLAYGROUND_NBYTES)
    write(vmm, *words, "--from", str(files[1]))
    threads, wanted = shape(vmm.pid)[0], settle(vmm.pid, shape(vmm.pid))
    state, hva = files[1].read_bytes(), vmm.gpa2hva(PLAYGROUND)
    outcomes = {"killed": 0, "untouched": 0, "half": 0, "whole": 0}
    for turn in range(KILLS):
        path = next(each for each in files if each.read_bytes()[:PAGE] != state[:PAGE])
        before = stored(vmm, hva)
        process = subprocess.Popen(
            argv(vmm, "write", *words, "--from", str(path)),
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 20
        while process.poll() is None and time.monotonic() < deadline:
            if stored(vmm, hva) != before or (turn % 4 == 0 and shape(vmm.pid)[0] != threads):
                break
        time.sleep(chance.uniform(0, 0.05))
        process.kill()
        outcomes["killed"] += process.wait(10) == -signal.SIGKILL
        assert vmm.process.poll() is None, f"QEMU died at turn {turn}"
        # the command that was in flight comes to its end without us
        settle(vmm.pid, (threads, *shape(vmm.pid)[1:]))
        data, found = path.read_bytes(), decrypted(vmm, PLAYGROUND, PLAYGROUND_NBYTES)
        pages = next(
            (at for at in range(0, len(data), PAGE) if found[at : at + PAGE] != data[at : at + PAGE]),
            len(data),
        )
        # equal pages at the edge may belong to either: both then say the same
        assert sha(found) == sha(data[:pages] + state[pages:]), f"turn {turn}: not old behind new"
        outcomes["untouched" if found == state else "whole" if pages == len(data) else "half"] += 1
        state = found
    print(f"{KILLS} turns: {outcomes}")
    assert outcomes["killed"] > KILLS // 4
    assert outcomes["half"] > 0
    assert "VM status: paused" in vmm.hmp("info status")
    with Deputy(vmm.pid):
        pass
    assert settle(vmm.pid, wanted) == wanted
    files[0].write_bytes(saved)
    write(vmm, *words, "--from", str(files[0]))
    assert sha(decrypted(vmm, PLAYGROUND, PLAYGROUND_NBYTES)) == sha(saved)


def sha(data: bytes) -> str:
    """Short enough for a report."""
    from hashlib import sha256

    return sha256(data).hexdigest()
