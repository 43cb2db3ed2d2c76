"""A kdump file that cannot be finished, with its threads at work: no file, no thread, an undisturbed QEMU."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.build import ROOT
from tests.support.kdumpread import KdumpFile
from tests.support.qemu import QemuVmm, qemu, require_kvm_qemu

pytestmark = pytest.mark.kvm

PAGE = 4096
RAM_NBYTES = 96 << 20
NOISE_GPA = 0x100000
NOISE = os.urandom(8 << 20)
MIDWAY_NBYTES = 4 << 20


@contextmanager
def noisy_qemu(*extra: str) -> Iterator[QemuVmm]:
    """No page is like another, and none shrinks: the file is as large as the guest, and takes its time."""
    require_kvm_qemu()
    with qemu(ram="96M", machine="pc", extra=extra) as vmm:
        hva = vmm.gpa2hva(NOISE_GPA)
        with Path(f"/proc/{vmm.pid}/mem").open("r+b", buffering=0) as memory:
            for number, offset in enumerate(range(0, RAM_NBYTES - NOISE_GPA, len(NOISE))):
                memory.seek(hva + offset)
                memory.write((NOISE[number:] + NOISE[:number])[: RAM_NBYTES - NOISE_GPA - offset])
        yield vmm


@pytest.fixture(scope="module")
def vmm() -> Iterator[QemuVmm]:
    with noisy_qemu() as vmm:
        yield vmm


def start(vmm: QemuVmm, output: Path, *options: str, **settings: Any) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-m", "sevkvm", "dump", "--pid", str(vmm.pid), "--vm-fd", str(vmm.vm_fd)]
    argv += ["--qmp", vmm.qmp_path, "--format", "kdump", "-o", str(output), *options]
    return subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **settings)


def threads(vmm: QemuVmm) -> int:
    return len(list(Path(f"/proc/{vmm.pid}/task").iterdir()))


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.001)


def wait_until_midway(process: subprocess.Popen[bytes], directory: Path) -> None:
    """Pages are in the file, more are to come."""

    def midway() -> bool:
        assert process.poll() is None, "it was too fast"
        return any(part.stat().st_size >= MIDWAY_NBYTES for part in directory.iterdir())

    wait_for(midway, "nothing was written")


def assert_well(vmm: QemuVmm, before: int) -> None:
    wait_for(lambda: threads(vmm) == before, "a thread of ours stayed")
    assert "VM status" in vmm.hmp("info status")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals(vmm: QemuVmm, tmp_path: Path, number: signal.Signals, status: int) -> None:
    before = threads(vmm)
    process = start(vmm, tmp_path / "vmcore")
    wait_until_midway(process, tmp_path)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == status, stderr.decode()
    assert b"Traceback" not in stderr
    assert list(tmp_path.iterdir()) == []
    assert_well(vmm, before)


def test_killed(vmm: QemuVmm, tmp_path: Path) -> None:
    """What nobody can clean up is under a name of its own, and in nobody's way."""
    before = threads(vmm)
    process = start(vmm, tmp_path / "vmcore")
    wait_until_midway(process, tmp_path)
    process.kill()
    process.communicate(timeout=30)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".vmcore.")
    assert left.suffix == ".part"
    assert_well(vmm, before)
    _, stderr = (process := start(vmm, tmp_path / "vmcore", "--gpa", "0x100000:+1M")).communicate(timeout=60)
    assert process.returncode == 0, stderr.decode()
    pages = KdumpFile(tmp_path / "vmcore").pages
    assert b"".join(page for page, _, _ in pages.values()) == NOISE[: 1 << 20]


def test_qemu_dies_midway(tmp_path: Path) -> None:
    with noisy_qemu() as vmm:
        process = start(vmm, tmp_path / "vmcore")
        wait_until_midway(process, tmp_path)
        os.kill(vmm.pid, signal.SIGKILL)
        _, stderr = process.communicate(timeout=30)
    assert process.returncode == 1, stderr.decode()
    assert b"Traceback" not in stderr
    assert list(tmp_path.iterdir()) == []


def test_the_disk_fills_up(vmm: QemuVmm, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "none", small], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no small file system to fill: {mounted.stderr.decode().strip()}")
    try:
        before = threads(vmm)
        process = start(vmm, small / "vmcore", "--no-space-check")
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == 1
        assert b"no space left" in stderr, stderr.decode()
        assert b"Traceback" not in stderr
        assert list(small.iterdir()) == []
        assert_well(vmm, before)
    finally:
        subprocess.run(["umount", small], check=True)


def test_memory_that_cannot_be_read_is_not_in_the_file(tmp_path: Path) -> None:
    """The file behind the RAM ends early: to touch what lies beyond is an error, up to the ROMs after it."""
    ram = tmp_path / "ram"
    backend = f"memory-backend-file,id=ram0,mem-path={ram},size=96M,share=on"
    with noisy_qemu("-object", backend, "-machine", "memory-backend=ram0") as vmm:
        os.truncate(ram, 64 << 20)
        process = start(vmm, tmp_path / "vmcore", "--gpa", "0:0x100000000")
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 6, stderr.decode()
    assert b"gpa 0x4000000:+0x2000000 could not be read" in stderr
    pages = {pfn: page for pfn, (page, _, _) in KdumpFile(tmp_path / "vmcore").pages.items()}
    middle, rom = (64 << 20) // PAGE, 0xFFFC0000 // PAGE
    assert not [pfn for pfn in pages if middle <= pfn < rom]
    assert [pfn for pfn in pages if pfn >= rom] == list(range(rom, 1 << 20))
    assert [pfn for pfn in pages if pfn < middle] == list(range(middle))
    data = ram.read_bytes()
    noisy = range(NOISE_GPA // PAGE, middle)
    assert b"".join(pages[pfn] for pfn in noisy) == data[NOISE_GPA:]
