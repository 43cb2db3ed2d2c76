"""``sevkvm write`` on plain guests on /dev/kvm: QEMU, stopped and running, and the lab's; the monitor is the judge."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from sevkvm.lab.demo import DIRECT_GVA, ROM_GVA, SECRET, SECRET_GPA
from tests.support.build import ROOT
from tests.support.lab import lab_guest
from tests.support.qemu import QemuVmm, qemu, require_kvm, require_kvm_qemu

pytestmark = pytest.mark.kvm

PAGE = 4096


@pytest.fixture(scope="module", params=["stopped", "running"])
def vmm(request: pytest.FixtureRequest) -> Iterator[QemuVmm]:
    require_kvm_qemu()
    with qemu(ram="64M", machine="pc", cpus=2, sandbox=True, stopped=request.param == "stopped") as vmm:
        yield vmm


def sevkvm(*words: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "sevkvm", *words], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == status, done.stderr
    return done


def write(vmm: QemuVmm, *words: str, status: int = 0) -> Any:
    options = ("--pid", str(vmm.pid), "--vm-fd", str(vmm.vm_fd), "--qmp", vmm.qmp_path, "--json")
    done = sevkvm("write", *options, *words, status=status)
    return json.loads(done.stdout) if status == 0 else done.stderr


def test_the_monitor_sees_what_was_written(vmm: QemuVmm) -> None:
    status, gpa = vmm.hmp("info status"), 0x234_5000 - 3  # the firmware of the one that runs is not busy here
    before = quads(vmm, gpa - 8, 3)
    told = write(vmm, "--gpa", hex(gpa), "--quad", "0x1122334455667788")
    assert told["written"] == 8
    assert [(piece["size"], piece["private"]) for piece in told["pieces"]] == [(3, None), (5, None)]
    assert quads(vmm, gpa - 8, 3) == [before[0], "0x1122334455667788", before[2]]
    write(vmm, "--gpa", told["address"], "--bytes", told["old"], "--expect", told["new"])
    assert quads(vmm, gpa - 8, 3) == before
    assert vmm.hmp("info status") == status


def quads(vmm: QemuVmm, gpa: int, count: int) -> list[str]:
    """What the monitor reads."""
    lines = vmm.hmp(f"xp /{count}xg {gpa:#x}").splitlines()
    return [word for line in lines for word in line.partition(": ")[2].split()]


@pytest.mark.parametrize(
    ("gpa", "reason"),
    [
        ("0xfffffff0", "ROM or flash"),
        ("0xfee00000", "MMIO or a hole"),
        ("0x4000000", "MMIO or a hole"),
        ("0xa0000000", "MMIO or a hole"),
    ],
)
def test_what_the_guest_cannot_write_is_refused(vmm: QemuVmm, gpa: str, reason: str) -> None:
    before = vmm.hmp(f"xp /4xb {gpa}")
    assert reason in write(vmm, "--gpa", gpa, "--bytes", "aa aa", status=1)
    assert vmm.hmp(f"xp /4xb {gpa}") == before


def test_nothing_is_written_before_a_refusal(vmm: QemuVmm) -> None:
    end = 64 << 20
    before = vmm.hmp(f"xp /2xg {end - 16:#x}")
    assert "0x4000000" in write(vmm, "--gpa", hex(end - 16), "--bytes", "bb" * 17, status=1)
    assert vmm.hmp(f"xp /2xg {end - 16:#x}") == before


def test_a_lab_guest() -> None:
    require_kvm()
    with lab_guest() as guest:
        arguments = guest.facts["arguments"]
        where = hex(DIRECT_GVA + SECRET_GPA)
        sevkvm("write", *arguments, where, "--string", "read me", "--expect", SECRET[:7].hex())
        assert guest.host_bytes(SECRET_GPA, len(SECRET)) == b"read me" + SECRET[7:]
        refused = sevkvm("write", *arguments, hex(ROM_GVA), "--bytes", "00", status=1)
        assert "ROM or flash" in refused.stderr
