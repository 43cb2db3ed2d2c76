"""On a kernel with every known bug of its age the tool reads what is there: it never asks in a way that meets one."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.build import ROOT
from tests.support.lab import LabGuest, lab_guest
from tests.support.sevhost import Host, notes, require_notification, strictest_host

pytestmark = pytest.mark.sev


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    require_notification()
    with strictest_host() as host:
        yield host


@pytest.fixture(scope="module")
def guest(host: Host) -> Iterator[LabGuest]:
    with lab_guest(policy=0, popen=host.popen) as guest:
        yield guest


def sevkvm(host: Host, guest: LabGuest, command: str, *arguments: str) -> str:
    process = host.popen(
        [sys.executable, "-m", "sevkvm", command, *guest.facts["arguments"], *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return str(out)


def test_a_dump(host: Host, guest: LabGuest, tmp_path: Path) -> None:
    for slot in guest.image.slots:
        out = tmp_path / slot.name
        sevkvm(host, guest, "dump", "-o", str(out), "--gpa", f"{slot.gpa:#x}:+{slot.nbytes:#x}")
        assert hashlib.sha256(out.read_bytes()).hexdigest() == guest.image.sha256(slot)
    assert notes(host) == []


@pytest.mark.parametrize(("offset", "nbytes"), [(0, 1), (1, 17), (15, 16), (0xFF9, 14), (0xFFF, 2)])
def test_bytes_at_odd_places(host: Host, guest: LabGuest, offset: int, nbytes: int) -> None:
    gpa = guest.image.landmark("secret").gpa & ~0xFFF | offset
    out = sevkvm(host, guest, "xp", f"/{nbytes}xb", hex(gpa))
    told = bytes(int(word, 16) for line in out.splitlines() for word in line.split(":")[1].split())
    assert told == guest.image.plaintext(gpa, nbytes)
    assert notes(host) == []
