"""`sevkvm dump` that cannot finish: the right exit status, a clear word, no file, an undisturbed QEMU."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.build import ROOT
from tests.support.qemu import QemuVmm, qemu, require_kvm_qemu

pytestmark = pytest.mark.kvm

RAM_NBYTES = 512 << 20


@contextmanager
def filled_qemu() -> Iterator[QemuVmm]:
    require_kvm_qemu()
    with qemu(ram="512M", machine="pc") as vmm:
        noise = os.urandom(1 << 20)
        hva = vmm.gpa2hva(0x100000)
        with Path(f"/proc/{vmm.pid}/mem").open("r+b", buffering=0) as memory:
            for offset in range(0, RAM_NBYTES - (1 << 20), 1 << 20):
                memory.seek(hva + offset)
                memory.write(noise)
        yield vmm


@pytest.fixture(scope="module")
def vmm() -> Iterator[QemuVmm]:
    with filled_qemu() as vmm:
        yield vmm


def start_dump(vmm: QemuVmm, output: str, **settings: object) -> subprocess.Popen[bytes]:
    argv = [
        *(sys.executable, "-m", "sevkvm", "dump", "--pid", str(vmm.pid), "--vm-fd", str(vmm.vm_fd)),
        *("--qmp", vmm.qmp_path, "--gpa", f"0:{RAM_NBYTES:#x}", "-o", output),
    ]
    options: dict[str, object] = {
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "cwd": ROOT,
        **settings,
    }
    return subprocess.Popen(argv, **options)  # type: ignore[call-overload, no-any-return]


def threads(vmm: QemuVmm) -> int:
    return len(list(Path(f"/proc/{vmm.pid}/task").iterdir()))


def wait_for(condition: object, what: str) -> None:
    deadline = time.monotonic() + 20
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, what
        time.sleep(0.001)


def wait_until_inside(process: subprocess.Popen[bytes], vmm: QemuVmm, count: int) -> None:
    wait_for(lambda: threads(vmm) > count or process.poll() is not None, "the dump never attached")


def start_blocked_dump(vmm: QemuVmm, **settings: object) -> subprocess.Popen[bytes]:
    """A dump into a pipe that nobody reads: it stands in the middle of its work for as long as we like."""
    process = start_dump(vmm, "-", **settings)
    assert process.stdout
    assert process.stdout.read(4096)
    return process


def assert_qemu_is_well(vmm: QemuVmm, before: int) -> None:
    wait_for(lambda: threads(vmm) == before, "a thread of ours stayed")
    assert "VM status" in vmm.hmp("info status")


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_signals(vmm: QemuVmm, tmp_path: Path, number: signal.Signals, status: int) -> None:
    before = threads(vmm)
    process = start_dump(vmm, str(tmp_path / "dump"))
    wait_until_inside(process, vmm, before)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == status, stderr.decode()
    assert b"Traceback" not in stderr
    assert list(tmp_path.iterdir()) == []
    assert_qemu_is_well(vmm, before)


def test_a_signal_while_writing_to_a_pipe(vmm: QemuVmm) -> None:
    before = threads(vmm)
    process = start_blocked_dump(vmm)
    process.send_signal(signal.SIGTERM)
    process.wait(30)
    assert process.returncode == 143
    assert_qemu_is_well(vmm, before)


@pytest.mark.parametrize("file_format", ["elf", "lime"])
def test_a_slow_reader_gets_every_byte(vmm: QemuVmm, tmp_path: Path, file_format: str) -> None:
    """A small pipe that is full nearly always, and emptied by fits and starts."""
    before = threads(vmm)
    argv = [sys.executable, "-m", "sevkvm", "dump", "--pid", str(vmm.pid), "--vm-fd", str(vmm.vm_fd)]
    argv += ["--qmp", vmm.qmp_path, "--gpa", "0x80000:0x480000", "--format", file_format, "-o"]
    subprocess.run([*argv, str(tmp_path / "whole")], cwd=ROOT, capture_output=True, timeout=60, check=True)
    with subprocess.Popen([*argv, "-"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, 4096)
        got = bytearray()
        while piece := os.read(process.stdout.fileno(), 100_000 if len(got) % 3 else 777):
            got += piece
            if len(got) >> 18 != len(got) - len(piece) >> 18:
                time.sleep(0.02)
        assert process.wait(30) == 0
    assert got == (tmp_path / "whole").read_bytes()
    assert_qemu_is_well(vmm, before)


def test_a_closed_pipe(vmm: QemuVmm) -> None:
    before = threads(vmm)
    process = start_blocked_dump(vmm)
    assert process.stdout
    process.stdout.close()
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 1
    assert b"Traceback" not in stderr
    assert_qemu_is_well(vmm, before)


def test_a_full_disk(vmm: QemuVmm, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", small], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no small file system to fill: {mounted.stderr.decode().strip()}")
    try:
        before = threads(vmm)
        _, stderr = (process := start_dump(vmm, str(small / "dump"))).communicate(timeout=60)
        assert process.returncode == 1
        assert b"has 64 MiB left" in stderr
        assert b"Traceback" not in stderr
        assert list(small.iterdir()) == []
        assert_qemu_is_well(vmm, before)
    finally:
        subprocess.run(["umount", small], check=True)


def test_a_disk_that_fills_up_meanwhile(vmm: QemuVmm, tmp_path: Path) -> None:
    """Room enough at first; then a limit on file size stands in for somebody else's data."""
    import resource

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (32 << 20, 32 << 20))

    before = threads(vmm)
    process = start_dump(vmm, str(tmp_path / "dump"), preexec_fn=limit)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert b"Traceback" not in stderr
    assert b"may not grow" in stderr
    assert list(tmp_path.iterdir()) == []
    assert_qemu_is_well(vmm, before)


def test_a_device_that_is_full(vmm: QemuVmm) -> None:
    before = threads(vmm)
    process = start_dump(vmm, "/dev/full")
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert b"no space left" in stderr, stderr.decode()
    assert_qemu_is_well(vmm, before)


def test_qemu_dies_midway() -> None:
    with filled_qemu() as vmm:
        process = start_blocked_dump(vmm)
        os.kill(vmm.pid, signal.SIGKILL)
        stdout, stderr = process.communicate(timeout=30)
        assert process.returncode == 1, stderr.decode()
        assert b"Traceback" not in stderr
        assert b"ended" in stderr
        assert len(stdout) < RAM_NBYTES - 4096


def test_qemu_dies_while_a_file_is_written(tmp_path: Path) -> None:
    with filled_qemu() as vmm:
        before = threads(vmm)
        process = start_dump(vmm, str(tmp_path / "dump"))
        wait_until_inside(process, vmm, before)
        os.kill(vmm.pid, signal.SIGKILL)
        _, stderr = process.communicate(timeout=30)
        assert process.returncode == 1, stderr.decode()
        assert b"Traceback" not in stderr
        assert list(tmp_path.iterdir()) == []
