"""``sevkvm verify`` and ``policy`` from outside: on encrypted guests, and on what a broken host makes of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from sevkvm.shim.cipher import HostTweak
from sevkvm.shim.faults import Faults, parse_fault
from sevkvm.shim.firmware import Firmware
from tests.support.build import ROOT
from tests.support.lab import LabGuest, lab_guest
from tests.support.sevhost import Host, heal, require_notification, sev_host

pytestmark = pytest.mark.sev

CANARY = "the secret is 'a plain text in an encrypted guest'"
SHARED = "this page is shared with the host, on purpose"


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    require_notification()
    with sev_host() as host:
        yield host


@pytest.fixture(scope="module")
def guest(host: Host) -> Iterator[LabGuest]:
    with lab_guest(policy=0, popen=host.popen) as guest:
        yield guest


def sevkvm(host: Host, guest: LabGuest, command: str, *args: str) -> tuple[int, dict[str, Any]]:
    process = host.popen(
        [sys.executable, "-m", "sevkvm", *command.split(), *guest.facts["arguments"], *args, "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    try:
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert out, err
    return process.returncode, json.loads(out)


def verify(host: Host, guest: LabGuest, *args: str) -> tuple[int, dict[str, str]]:
    status, found = sevkvm(host, guest, "verify", *args)
    return status, {check["id"]: check["outcome"] for check in found["checks"]}


def test_an_encrypted_guest(host: Host, guest: LabGuest) -> None:
    text = guest.image.landmark("text")
    shared = guest.image.landmark("shared")
    status, outcomes = verify(
        host,
        guest,
        *("--strict", "--canary", CANARY),
        *("--require", f"private={text.gpa:#x}:+{text.nbytes:#x}"),
        *("--require", f"shared={shared.gpa:#x}:+4K"),
    )
    assert status == 0, outcomes
    assert set(outcomes.values()) == {"pass"}
    assert len(outcomes) == 12


def test_a_canary_by_its_virtual_address(host: Host, guest: LabGuest) -> None:
    secret = guest.image.landmark("secret")
    canary = guest.image.plaintext(secret.gpa, secret.nbytes).hex()
    assert verify(host, guest, "--canary", f"hex:{canary}", "--at", hex(secret.gva))[0] == 0


def test_a_canary_in_the_shared_page(host: Host, guest: LabGuest) -> None:
    status, outcomes = verify(host, guest, "--canary", SHARED)
    assert (status, outcomes["canary-found"], outcomes["canary-hidden"]) == (1, "fail", "fail")


def test_few_firmware_commands(host: Host, guest: LabGuest) -> None:
    counts = host.kernel.firmware.counts
    before = counts["DBG_DECRYPT"]
    assert verify(host, guest, "--samples", "8")[0] == 0
    tables = sum(1 for region in guest.image.regions if 0x10000 <= region.gpa < 0x90000)
    assert counts["DBG_DECRYPT"] - before <= tables + 64


def test_a_firmware_that_fails_on_the_way_is_no_pass(host: Host, guest: LabGuest) -> None:
    host.kernel.firmware.faults = Faults([parse_fault("dbg_decrypt:after=30:status=HWSEV_RET_PLATFORM")])
    try:
        with pytest.raises(AssertionError, match="HWSEV_RET_PLATFORM"):
            verify(host, guest)
    finally:
        heal(host)


class Unchanged:
    """A cipher that does nothing."""

    def decrypt_into(self, spa: int, data: memoryview, out: memoryview) -> None:
        out[:] = data

    encrypt_into = decrypt_into


def test_a_firmware_that_returns_ciphertext(
    host: Host, guest: LabGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host.kernel.firmware, "dbg", lambda *args: Unchanged())
    status, outcomes = verify(host, guest)
    assert (status, outcomes["private"]) == (1, "fail")


def test_a_cipher_without_a_tweak() -> None:
    require_notification()
    with (
        sev_host(firmware=Firmware(HostTweak(bytes(1024)))) as host,
        lab_guest(policy=0, popen=host.popen) as guest,
    ):
        status, outcomes = verify(host, guest)
        assert (status, outcomes["tweak"], outcomes["private"]) == (1, "fail", "fail")


def test_a_plain_guest(host: Host) -> None:
    with lab_guest(popen=host.popen) as guest:
        status, outcomes = verify(host, guest, "--canary", CANARY)
        assert (status, outcomes["encrypted"], outcomes["canary-hidden"]) == (1, "fail", "fail")


def test_a_guest_that_nobody_can_debug(host: Host) -> None:
    with lab_guest(policy=5, popen=host.popen) as guest:
        wanted = ("--require", "nodebug", "--require", "es", "--canary", CANARY)
        status, outcomes = verify(host, guest, *wanted)
        assert status == 0
        assert [outcomes[name] for name in ("nodebug", "es", "canary-hidden")] == ["pass"] * 3
        assert verify(host, guest)[0] == 1
        status, policy = sevkvm(host, guest, "policy decode")
        assert (status, policy["value"], policy["source"], policy["kind"]) == (0, "0x5", "firmware", "sev-es")


def test_sev_es_with_tables_that_are_named(host: Host) -> None:
    with lab_guest(policy=4, popen=host.popen) as guest:
        wanted = ("--cr3", "0x10000", "--paging", "4level", "--require", "es", "--canary", CANARY)
        status, outcomes = verify(host, guest, "--strict", *wanted)
        assert (status, set(outcomes.values())) == (0, {"pass"})


PLACED = "correct horse battery staple"


@pytest.mark.sev_write
def test_a_canary_is_placed_and_taken_out_again(host: Host, guest: LabGuest) -> None:
    text = guest.image.landmark("text")
    gpa, before = text.gpa + 0x1FE8, guest.host_bytes(text.gpa, 3 * 4096)  # it lies across two pages
    status, found = sevkvm(
        host, guest, "verify", "--canary", PLACED, "--at", f"gpa:{gpa:#x}", "--place", "--strict"
    )
    outcomes = {check["id"]: check["outcome"] for check in found["checks"]}
    assert (status, set(outcomes.values())) == (0, {"pass"})
    assert [check["evidence"] for check in found["checks"] if check["id"] == "canary-placed"] == [
        [f"at gpa {gpa:#x}; what was there is back"]
    ]
    assert guest.host_bytes(text.gpa, 3 * 4096) == before
    assert verify(host, guest, "--canary", PLACED)[1]["canary-found"] == "fail"


@pytest.mark.sev_write
@pytest.mark.parametrize("name", ["shared", "rom"])
def test_where_no_canary_is_placed(host: Host, guest: LabGuest, name: str) -> None:
    mark = guest.image.landmark(name)
    before, encrypted = guest.host_bytes(mark.gpa, 4096), host.kernel.firmware.counts["DBG_ENCRYPT"]
    with pytest.raises(
        AssertionError,
        match=r"page at gpa 0x104000 is shared|the guest has ROM",
    ):
        verify(host, guest, "--canary", PLACED, "--at", hex(mark.gpa), "--place")
    assert guest.host_bytes(mark.gpa, 4096) == before
    assert host.kernel.firmware.counts["DBG_ENCRYPT"] == encrypted
