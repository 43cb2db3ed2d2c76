"""The doctor on this very host: what it says is what the host's own files and programs say."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sevkvm import native
from sevkvm.abi import sev
from tests.support.build import ROOT
from tests.unit.cli.test_json_documented import keys, section

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def answer() -> dict[str, Any]:
    command = [sys.executable, "-m", "sevkvm", "doctor", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    told: dict[str, Any] = json.loads(done.stdout)
    assert told["exit_status"] == done.returncode
    return told


def check(answer: dict[str, Any], *path: str) -> dict[str, Any]:
    """The check under these headings."""
    here: dict[str, Any] = answer
    for name in path:
        (here,) = [each for each in here["checks"] if each["name"] == name]
    return here


def test_every_key_is_documented(answer: dict[str, Any]) -> None:
    import re

    assert keys(answer) == {"exit_status", "checks", "name", "result", "detail", "help"}
    assert keys(answer) <= set(re.findall(r"`(\w+)`", section("doctor")))


def test_the_processor_is_the_one_that_cpuinfo_names(answer: dict[str, Any]) -> None:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    detail = check(answer, "processor")["detail"]
    assert f"family 0x{int(fields['cpu family']):x} model 0x{int(fields['model']):x}" in detail
    assert ("itself virtual" in detail) == ("hypervisor" in fields["flags"].split())


def test_without_sev_the_exit_status_is_not_0(answer: dict[str, Any]) -> None:
    if native.cpuid(0x80000000)[0] >= sev.CPUID_LEAF and native.cpuid(sev.CPUID_LEAF)[0] & sev.CPUID_EAX_SEV:
        pytest.skip("this processor has SEV")
    if Path("/dev/sev").exists():
        pytest.skip("there is a /dev/sev, without SEV in the processor: a pretend host")
    assert answer["exit_status"] in (1, 5)
    assert check(answer, "processor")["result"] == "fail"
    assert check(answer, "/dev/sev")["result"] == "skip"


def test_kernel_modules_and_devices_are_as_sys_and_dev_have_them(answer: dict[str, Any]) -> None:
    assert check(answer, "kernel", "version")["detail"].startswith(os.uname().release)
    assert (check(answer, "kernel", "kvm")["result"] == "pass") == Path("/sys/module/kvm").exists()
    missing = (check(answer, "/dev/kvm")["detail"] or "").startswith("missing")
    assert missing != Path("/dev/kvm").exists()


def test_rights_are_ours(answer: dict[str, Any]) -> None:
    told = check(answer, "rights", "user")["detail"]
    capable = int(Path("/proc/self/status").read_text().split("CapEff:")[1].split()[0], 16)
    assert ("CAP_SYS_PTRACE and" in told or told.endswith("CAP_SYS_PTRACE")) == bool(capable >> 19 & 1)
    scope = Path("/proc/sys/kernel/yama/ptrace_scope")
    yama = check(answer, "rights", "Yama")["detail"]
    assert yama.startswith(f"ptrace_scope {scope.read_text().strip()}" if scope.exists() else "not in this")


def test_programs_are_those_on_the_path(answer: dict[str, Any]) -> None:
    for name in ("qemu-system-x86_64", "virsh"):
        assert (check(answer, "software", name)["result"] == "pass") == (shutil.which(name) is not None)
