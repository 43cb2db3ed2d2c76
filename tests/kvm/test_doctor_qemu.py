"""The doctor on real guests: QEMU, sandboxed or traced, and the lab's VMM, encrypted on the pretend host."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from click.testing import CliRunner

from sevkvm import errors, native
from sevkvm.cli.program import program
from sevkvm.host.deputy import Deputy
from sevkvm.shim.supervisor import SevHost
from tests.support.build import ROOT
from tests.support.lab import LabGuest, lab_guest
from tests.support.qemu import QemuVmm, qemu, require_kvm, require_kvm_qemu

pytestmark = pytest.mark.kvm


@pytest.fixture(scope="module")
def vmm() -> Iterator[QemuVmm]:
    require_kvm_qemu()
    with qemu(ram="64M", sandbox=True) as running:
        yield running


def doctor(pid: int, *args: str) -> tuple[dict[str, Any], int]:
    """Everything below the guest's heading, by name, and the exit status."""
    command = [sys.executable, "-m", "sevkvm", "doctor", "--json", f"--pid={pid}", *args]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    (guest,) = [each for each in json.loads(done.stdout)["checks"] if each["name"] == "guest"]
    found: dict[str, Any] = {"guest": guest}
    rest = list(guest["checks"])
    while rest:
        each = rest.pop(0)
        found.setdefault(each["name"], each)
        rest += each["checks"]
    return found, done.returncode


def slots(guest: LabGuest) -> list[str]:
    return [f"--slot={slot.gpa:#x}:{slot.nbytes:#x}:{slot.hva:#x}" for slot in guest.slots]


def test_qemu_in_its_sandbox(vmm: QemuVmm) -> None:
    found, status = doctor(vmm.pid)
    assert status == 0
    assert found["guest"]["result"] == "pass"
    assert "seccomp filter, -sandbox on" in found["sandbox"]["detail"]
    assert found["protection"]["detail"] == "not encrypted (the monitor says)"
    assert found["monitor"]["detail"].startswith(f"QMP at {vmm.qmp_path}, answers; the VM is ")
    assert found["memory"]["detail"].endswith("from the monitor")
    assert "attached" not in found


def test_nobody_is_attached_to_unasked(vmm: QemuVmm, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise errors.AttachError("attached")

    monkeypatch.setattr(native, "deputy_open", refuse)
    assert CliRunner().invoke(program, ["doctor", f"--pid={vmm.pid}"]).exit_code == 0
    asked = CliRunner().invoke(program, ["doctor", f"--pid={vmm.pid}", "--attach"])
    assert "[ FAIL ]     - attach: attached" in asked.stdout


def test_attaching_is_measured(vmm: QemuVmm) -> None:
    found, status = doctor(vmm.pid, "--attach")
    assert status == 0
    assert "one thread of the VMM stood still for" in found["attach"]["detail"]
    assert "the vCPUs for" in found["attach"]["detail"]
    assert found["protection"]["detail"] == "not encrypted (the kernel says)"
    assert vmm.hmp("info status").startswith("VM status")


def test_another_tracer_is_seen_as_attaching_would(vmm: QemuVmm) -> None:
    with Deputy(vmm.pid) as deputy:
        deputy.hold()
        found, status = doctor(vmm.pid, "--timeout=0.2")  # its monitor cannot answer now
    assert status == 1
    assert "traces the VMM" in found["tracer"]["detail"]
    assert found["deputy"]["result"] == "fail"
    assert found["deputy"]["help"] == found["tracer"]["help"] == "detach the other debugger first"


@pytest.mark.sev
@pytest.mark.parametrize(
    ("policy", "protection", "debugging", "status"),
    [(0, "SEV", "pass", 0), (1, "SEV", "fail", 5), (4, "SEV-ES", "pass", 0)],
)
def test_an_encrypted_guest(policy: int, protection: str, debugging: str, status: int) -> None:
    require_kvm()
    with SevHost() as host, lab_guest(policy=policy, popen=host.popen) as guest:
        unasked, _ = doctor(guest.pid, *slots(guest))
        found, code = doctor(guest.pid, "--attach", *slots(guest))
    assert "shows only inside" in unasked["protection"]["detail"]
    assert found["protection"]["detail"] == f"{protection} (the kernel says)"
    assert found["debugging"]["result"] == debugging
    assert (found["registers"]["result"] == "warn") == (protection == "SEV-ES")
    assert found["C-bit"]["detail"] == "bit 51, from the guest's CPUID 8000_001F"
    assert code == status


@pytest.mark.sev
def test_the_host_as_seen_from_within_the_pretend_host() -> None:
    """/dev/sev answers there and kvm_amd says Y, whatever the processor is."""
    require_kvm()
    with SevHost() as host:
        command = [sys.executable, "-m", "sevkvm", "doctor", "--json"]
        process = host.popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        output, _ = process.communicate(timeout=60)
    told = json.loads(output)
    checks = {each["name"]: each for each in told["checks"]}
    (platform,) = checks["/dev/sev"]["checks"]
    assert platform["result"] == "pass"
    assert platform["detail"].startswith("SEV API ")
    assert checks["processor"]["result"] in ("pass", "warn")
