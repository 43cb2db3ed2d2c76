"""The two switches of a run on hardware. A `sevkvm shim` around the whole of pytest is the hardware here."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.support.build import ROOT
from tests.support.pytestrun import run_pytest
from tests.support.sevhost import NO_WRITE, require_kvm_mode

pytestmark = pytest.mark.host

ON_A_SEV_HOST = [sys.executable, "-m", "sevkvm", "shim", "--"]


@pytest.fixture(autouse=True)
def _host() -> None:
    require_kvm_mode("real")


def test_where_there_is_no_sev_every_case_is_skipped_and_says_so(tmp_path: Path) -> None:
    if Path("/dev/sev").exists():
        pytest.skip("this host has /dev/sev")
    found = run_pytest(tmp_path, "--hardware", "tests/sev")
    assert (found.passed, found.failed) == ([], [])
    assert len(found.skipped) > 500
    (reason,) = set(found.skipped.values())
    assert "no usable /dev/sev (ENOENT)" in reason
    assert "sevkvm doctor" in reason


def test_the_same_cases_pass_on_the_hosts_own_device(tmp_path: Path) -> None:
    """The supervisor around it does not let another one be: no case can have had a pretend host of its own."""
    files = (
        "test_host_sev.py",
        "test_lab_encrypted.py",
        "test_verify_encrypted.py",
        "test_write_encrypted.py",
    )
    paths = [str(ROOT / "tests" / "sev" / name) for name in files]
    chosen = (
        "counts_guests or encrypted_qemu or real-anonymous or documented_one or registers_of_the_image or "
        "test_an_encrypted_guest or cipher or few or test_write"
    )
    found = run_pytest(tmp_path, "--hardware", "-k", chosen, *paths, prefix=ON_A_SEV_HOST)
    assert found.failed == []
    passed = {name.partition("[")[0] for name in found.passed}
    assert passed >= {
        "test_host_sev::test_platform_status_counts_guests",
        "test_host_sev::test_an_encrypted_qemu_shows_from_outside_its_host",
        "test_lab_encrypted::test_private_memory_is_noise_to_the_host_and_shared_memory_is_not",
        "test_lab_encrypted::test_the_launch_is_the_documented_one_and_ends_in_running",
        "test_verify_encrypted::test_an_encrypted_guest",
    }
    reasons = {name: reason for name, reason in found.skipped.items() if "test_write" not in name}
    assert "nothing stands in" in reasons["test_host_sev::test_platform_status_counts_guests[standin]"]
    cbit = "test_lab_encrypted::test_the_vcpu_has_the_registers_of_the_image"
    assert reasons[f"{cbit}[real-47-False]"] == "the C-bit of this host is 51, not 47"
    assert "told its firmware" in reasons["test_verify_encrypted::test_a_cipher_without_a_tweak"]
    assert "no counts" in reasons["test_verify_encrypted::test_few_firmware_commands"]
    # nothing is written without the second switch
    writes = {name: reason for name, reason in found.skipped.items() if "test_write" in name}
    assert len(writes) > 20
    assert set(writes.values()) == {NO_WRITE}


def test_what_changes_a_guest_runs_with_the_second_switch(tmp_path: Path) -> None:
    switches = {"SEVKVM_HARDWARE": "1", "SEVKVM_HARDWARE_WRITE": "1"}
    words = [str(ROOT / "tests/sev/test_write_encrypted.py"), "-k", "old_kernels or middle"]
    found = run_pytest(tmp_path, *words, prefix=ON_A_SEV_HOST, **switches)
    assert found.failed == []
    assert found.passed == ["test_write_encrypted::test_the_shapes_that_old_kernels_corrupt[new]"]
    assert {name: reason for name, reason in found.skipped.items() if name.endswith("[new-0]")} == {
        "test_write_encrypted::test_a_firmware_error_in_the_middle[new-0]": "a real kernel and firmware tell no "
        "counts, and fail when they like"
    }


def test_the_fixture_of_other_projects_is_the_machine_too(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        """
import subprocess, sys
import pytest

def test_popen(sev_host):
    assert sev_host.popen(["head", "-c0", "/dev/sev"]).wait(10) == 0
    assert not sev_host.standin

def test_log(sev_host):
    assert sev_host.log.names() == []

@pytest.mark.sev_host(faults=["dbg_decrypt:status=1"])
def test_faults(sev_host):
    raise AssertionError("it ran")

def test_it_is_ended(sev_host):
    global left
    left = sev_host.popen(["sleep", "600"])

def test_it_was_ended():
    assert left.returncode == -15
"""
    )
    found = run_pytest(tmp_path, "test_it.py", cwd=tmp_path, prefix=ON_A_SEV_HOST, SEVKVM_HARDWARE="1")
    assert found.failed == []
    assert len(found.passed) == 3
    assert found.skipped == {
        "test_it::test_log": "hardware keeps no log of SEV commands",
        "test_it::test_faults": "sev_host: hardware cannot be told its faults",
    }
