"""The command line on hardware that fails: what it says, how it exits, what it leaves behind."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from sevkvm.shim.faults import Faults, parse_fault
from tests.support.build import ROOT
from tests.support.lab import LabGuest, lab_guest
from tests.support.sevhost import Host, heal, require_notification, sev_host

pytestmark = [
    pytest.mark.sev,
    pytest.mark.pretended("hardware cannot be told to fail, nor to be slow"),
]

Completed = subprocess.CompletedProcess


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    require_notification()
    with sev_host() as host:
        yield host


@pytest.fixture(scope="module")
def shared_guest(host: Host) -> Iterator[LabGuest]:
    with lab_guest(policy=0, popen=host.popen) as guest:
        yield guest


@pytest.fixture
def guest(host: Host, shared_guest: LabGuest) -> Iterator[LabGuest]:
    yield shared_guest
    heal(host)


def fail(host: Host, *texts: str, latency: float = 0.0) -> None:
    """Let it happen from now on."""
    host.kernel.firmware.faults = Faults([parse_fault(text) for text in texts], latency)


def sevkvm(host: Host, *arguments: str) -> Completed[str]:
    process = host.popen(
        [sys.executable, "-m", "sevkvm", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    try:
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    return Completed(arguments, process.returncode, out, err)


def dump(host: Host, guest: LabGuest, out: Path, *more: str) -> Completed[str]:
    done = sevkvm(host, "dump", *guest.facts["arguments"], "-o", str(out), *more)
    if done.returncode:
        assert not out.exists()
        assert not list(out.parent.iterdir())
    return done


def assert_usable(host: Host, guest: LabGuest, out: Path) -> None:
    """Nothing is left in the VMM that would keep the next one from its work."""
    heal(host)
    assert_dumps(host, guest, out)


def assert_dumps(host: Host, guest: LabGuest, out: Path) -> None:
    slot = guest.image.slots[0]
    done = dump(host, guest, out, "--gpa", f"{slot.gpa:#x}:+{slot.nbytes:#x}")
    assert done.returncode == 0, done.stderr
    assert hashlib.sha256(out.read_bytes()).hexdigest() == guest.image.sha256(slot)
    out.unlink()


@pytest.mark.parametrize("after", [0, 100])
def test_a_status_in_the_middle_of_a_dump(host: Host, guest: LabGuest, tmp_path: Path, after: int) -> None:
    fail(host, f"dbg_decrypt:after={after}:status=HWSEV_RET_PLATFORM")
    done = dump(host, guest, tmp_path / "core")
    assert done.returncode == 1
    assert "HWSEV_RET_PLATFORM (0x13)" in done.stderr
    assert_usable(host, guest, tmp_path / "core")


def test_a_dead_processor(host: Host, guest: LabGuest, tmp_path: Path) -> None:
    fail(host, "psp-dead:after=50")
    done = dump(host, guest, tmp_path / "core")
    assert done.returncode == 1
    assert "EBUSY" in done.stderr
    assert "stopped answering" in done.stderr
    status = sevkvm(host, "status", *guest.facts["arguments"])
    assert status.returncode == 1
    assert "EBUSY" in status.stderr
    assert_usable(host, guest, tmp_path / "core")


def test_a_processor_that_times_out(host: Host, guest: LabGuest, tmp_path: Path) -> None:
    fail(host, "psp-timeout:after=50")
    done = dump(host, guest, tmp_path / "core")
    assert done.returncode == 1
    assert "ETIMEDOUT" in done.stderr
    assert "until reboot" in done.stderr
    assert_usable(host, guest, tmp_path / "core")


def test_a_vm_that_dies(host: Host, tmp_path: Path) -> None:
    with lab_guest(policy=0, popen=host.popen) as doomed:
        fail(host, "vm-dead:after=50")
        try:
            done = dump(host, doomed, tmp_path / "core")
        finally:
            heal(host)
    assert done.returncode == 1
    assert "EIO" in done.stderr
    assert "the VM is dead" in done.stderr


def test_a_delay_longer_than_the_timeout(host: Host, guest: LabGuest, tmp_path: Path) -> None:
    fail(host, "dbg_decrypt:after=20:count=1:delay=3")
    done = dump(host, guest, tmp_path / "core", "--timeout", "0.5")
    assert done.returncode == 1
    assert "0.5" in done.stderr or "in time" in done.stderr
    assert_usable(host, guest, tmp_path / "core")


def test_slow_hardware_changes_nothing_but_the_time(host: Host, guest: LabGuest, tmp_path: Path) -> None:
    fail(host, latency=100e-6)
    assert_dumps(host, guest, tmp_path / "core")


def test_a_pretend_host_from_the_command_line(tmp_path: Path) -> None:
    require_notification()
    program = (
        "import os, fcntl, struct\nfd = os.open('/dev/sev', os.O_RDWR)\n"
        "for _ in range(2):\n"
        "    try:\n        fcntl.ioctl(fd, 0xC0105300, bytearray(struct.pack('<IQI', 1, 0, 0)))\n"
        "    except OSError as error:\n        print(error.errno)\n"
    )
    fault = "platform_status:count=1:errno=ENODEV"
    argv = [
        sys.executable,
        "-m",
        "sevkvm",
        "shim",
        "--fault",
        fault,
        "--latency",
        "10",
        "--kernel",
        "old",
        "--",
    ]
    done = subprocess.run(
        [*argv, sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=30
    )
    assert done.stdout.split() == ["19", "14"], done.stderr  # ENODEV, and then EFAULT for the NULL


def test_a_fault_that_makes_no_sense(tmp_path: Path) -> None:
    log = tmp_path / "log"
    argv = [
        sys.executable,
        "-m",
        "sevkvm",
        "shim",
        "--log",
        str(log),
        "--fault",
        "dbg_decript:status=1",
        "--",
    ]
    done = subprocess.run([*argv, "true"], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert done.returncode == 2
    assert "dbg_decript" in done.stderr
    assert not log.exists()


def test_memory_that_cannot_be_pinned_in_the_middle(host: Host, tmp_path: Path) -> None:
    """The file behind the first slot ends early: a hole between RAM below and ROM and RAM above, in no segment."""
    with lab_guest(policy=0, popen=host.popen, backing="memfd") as guest:
        low, *others = guest.image.slots
        end = low.nbytes - (1 << 20)
        (ram,) = (
            link
            for link in Path(f"/proc/{guest.pid}/fd").iterdir()
            if str(link.readlink()).startswith("/memfd:sevkvm-lab-") and link.stat().st_size == low.nbytes
        )
        os.truncate(ram, end)
        for file_format in ("elf", "raw"):
            out = tmp_path / file_format
            arguments = [*guest.facts["arguments"], "-o", str(out), "--format", file_format, "--json"]
            done = sevkvm(host, "dump", *arguments)
            assert done.returncode == 6, done.stderr
            assert f"gpa {end:#x}:+0x100000 could not be read" in done.stderr
            found = json.loads(done.stdout)
            assert not found["complete"]
            lost = [hole for hole in found["holes"] if hole["reason"] != "not-ram"]
            assert lost == [
                {"address": hex(end), "size": 1 << 20, "reason": "unreadable-sampled", "zero_filled": False}
            ]
        with (tmp_path / "elf").open("rb") as file:
            segments = {s["p_paddr"]: s.data() for s in ELFFile(file).iter_segments("PT_LOAD")}
    whole = [(low.gpa, end), *((slot.gpa, slot.nbytes) for slot in others)]
    assert {gpa: len(data) for gpa, data in segments.items()} == dict(whole)
    assert all(segments[gpa] == guest.image.plaintext(gpa, nbytes) for gpa, nbytes in whole)
    with (tmp_path / "raw").open("rb") as file:
        assert file.read(end) == guest.image.plaintext(low.gpa, end)
