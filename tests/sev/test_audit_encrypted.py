"""``sevkvm audit`` from outside: on encrypted guests, and on dumps of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.build import ROOT
from tests.support.lab import LabGuest, lab_guest
from tests.support.sevhost import Host, require_notification, sev_host

pytestmark = pytest.mark.sev


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    require_notification()
    with sev_host() as host:
        yield host


@pytest.fixture(scope="module")
def guest(host: Host) -> Iterator[LabGuest]:
    with lab_guest(policy=0, popen=host.popen) as guest:
        yield guest


def sevkvm(host: Host, *words: str) -> tuple[int, str, str]:
    process = host.popen(
        [sys.executable, "-m", "sevkvm", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    try:
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, out, err


def audit(host: Host, *words: str) -> dict[str, Any]:
    status, out, err = sevkvm(host, "audit", *words, "--json")
    assert status == 0, err
    found = json.loads(out)
    assert isinstance(found, dict)
    return found


def rules(found: dict[str, Any]) -> set[str]:
    return {finding["rule"] for finding in found["findings"]}


def test_an_encrypted_guest(host: Host, guest: LabGuest) -> None:
    """The practice guest has no protection in its registers, and shares one buffer."""
    found = audit(host, *guest.facts["arguments"])
    assert (found["sev"], found["complete"]) == ("sev", True)
    assert found["totals"]["error"] == sum(rule in rules(found) for rule in ("SEVKVM013", "SEVKVM014"))
    shared = guest.image.landmark("shared")
    (told,) = [finding for finding in found["findings"] if finding["rule"] == "SEVKVM011"]
    assert hex(shared.gpa) in {place["gpa"] for place in told["places"]}
    assert not rules(found) & {f"SEVKVM{number:03}" for number in range(1, 9)}


def test_each_table_is_decrypted_once(host: Host, guest: LabGuest) -> None:
    counts = host.kernel.firmware.counts
    before = counts["DBG_DECRYPT"]
    audit(host, *guest.facts["arguments"], "--no-symbols")
    tables = sum(1 for region in guest.image.regions if 0x10000 <= region.gpa < 0x90000)
    assert 0 < counts["DBG_DECRYPT"] - before <= tables


def test_a_gate(host: Host, guest: LabGuest) -> None:
    arguments = guest.facts["arguments"]
    status, out, _ = sevkvm(host, "audit", *arguments, "--fail-on", "warning", "--rule", "SEVKVM015")
    assert (status, out.splitlines()[0]) == (1, "SEVKVM015 smep-off")
    assert sevkvm(host, "audit", *arguments, "--fail-on", "warning", "--rule", "SEVKVM001")[0] == 0


def test_registers_that_are_encrypted(host: Host) -> None:
    with lab_guest(policy=4, popen=host.popen) as guest:
        named = ("--cr3", "0x10000", "--paging", "4level")
        found = audit(host, *guest.facts["arguments"], *named)
        assert found["sev"] == "sev-es"
        skipped = {each["rule"] for each in found["skipped"]}
        assert skipped >= {"SEVKVM013", "SEVKVM014", "SEVKVM015", "SEVKVM016"}
        assert "SEVKVM011" in rules(found)


def test_a_dump_says_what_the_guest_did(host: Host, guest: LabGuest, tmp_path: Path) -> None:
    path = tmp_path / "core"
    arguments = guest.facts["arguments"]
    made = sevkvm(host, "dump", *arguments, "--format", "elf", "--cbit", "keep", "-o", str(path))
    assert made[0] == 0, made
    alive, dumped = audit(host, *arguments), audit(host, "--file", str(path))
    assert dumped["pid"] is None
    assert dumped["findings"] == alive["findings"]


def test_a_guest_that_nobody_may_debug(host: Host) -> None:
    with lab_guest(policy=1, popen=host.popen) as guest:
        status, out, err = sevkvm(host, "audit", *guest.facts["arguments"], "--sarif", "-")
        assert (status, out) == (5, "")
        assert "NODBG" in err
