"""A mirror VM on the lab's guest: the same bytes as through a deputy, and why there is none where there is none."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.lab import SUBPROCESS_ENVIRONMENT, LabGuest, lab_guest
from tests.support.sevhost import Host, require_kvm_mode, sev_host
from tests.support.sevprog import start
from tests.support.witness import Witness, undisturbed

pytestmark = pytest.mark.sev

CBIT = ("--cbit-pos", "51")


@dataclass
class Said:
    """How a command ended."""

    pid: int
    status: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        assert self.stdout, self.stderr
        return json.loads(self.stdout)


def sevkvm(host: Host, *argv: str, shell: str = "") -> Said:
    """Run it on the pretend host: a mirror is a VM there."""
    words = [sys.executable, "-m", "sevkvm", *argv]
    if shell:
        words = ["sh", "-c", f'{shell}; exec "$@"', "sh", *words]
    process = host.popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=SUBPROCESS_ENVIRONMENT
    )
    out, err = process.communicate(timeout=60)
    return Said(process.pid, process.returncode, out, err)


@dataclass
class Lab:
    host: Host
    guest: LabGuest

    def run(self, command: str, *more: str) -> Said:
        return sevkvm(self.host, command, *self.guest.facts["arguments"], *CBIT, *more)


@pytest.fixture(params=[("real", "old"), ("standin", "new")], scope="module", ids="-".join)
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    kvm, generation = request.param
    require_kvm_mode(kvm)
    with (
        sev_host(kvm=kvm, generation=generation, cbit_pos=51) as host,
        lab_guest(policy=0, backing="memfd", popen=host.popen) as guest,
    ):
        yield Lab(host, guest)


def test_the_same_bytes_and_nobody_is_touched(lab: Lab, tmp_path: Path) -> None:
    low = 6 << 20
    words = ("--live", "--cr3", lab.guest.facts["cr3"], "--gpa", f"0:{low}", "--force")

    def dump(via: str) -> int:
        said = lab.run("dump", "-o", str(tmp_path / via), *words, "--via", via)
        assert said.status == 0, said.stderr
        return said.pid

    undisturbed(lab.guest.pid, lambda: dump("mirror"))
    with Witness(lab.guest.pid) as witness:
        deputy = dump("deputy")
    assert deputy in witness.tracers  # the witness sees what there is to be seen
    found = (tmp_path / "mirror").read_bytes()
    assert found == (tmp_path / "deputy").read_bytes()
    for gpa, nbytes in lab.guest.image.private_ranges():
        if gpa + nbytes <= low:
            assert found[gpa : gpa + nbytes] == b"".join(lab.guest.image.iter_plaintext(gpa, nbytes))
    names = lab.host.log.names()
    assert "COPY_ENC_CONTEXT_FROM" in names
    assert "MOVE_ENC_CONTEXT_FROM" not in names


def test_what_needs_no_registers_goes_through_a_mirror_by_itself(lab: Lab) -> None:
    mark = lab.guest.image.landmarks[0]
    before = lab.host.log.names().count("COPY_ENC_CONTEXT_FROM")
    status = lab.run("status", "--json").json
    word = lab.run("xp", "--json", "/8xb", hex(mark.gpa)).json
    assert (status["via"], status["via_remark"], status["sev"]) == ("mirror", None, "sev")
    assert bytes.fromhex(word["bytes"]) == b"".join(lab.guest.image.iter_plaintext(mark.gpa, 8))
    assert lab.host.log.names().count("COPY_ENC_CONTEXT_FROM") == before + 2
    # registers are the deputy's
    assert lab.run("regs", "--json").json[0]["cr3"] == lab.guest.facts["cr3"]
    assert lab.host.log.names().count("COPY_ENC_CONTEXT_FROM") == before + 2


def test_virtual_addresses_by_named_tables(lab: Lab) -> None:
    mark = lab.guest.image.landmarks[0]
    named = ("--via", "mirror", "--cr3", lab.guest.facts["cr3"])
    (found,) = lab.run("translate", "--json", hex(mark.gva), *named).json
    assert (found["gpa"], found["hva"]) == (hex(mark.gpa), hex(lab.guest.hva(mark.gpa)))
    told = lab.run("x", "--json", "/8xb", hex(mark.gva), *named).json
    assert bytes.fromhex(told["bytes"]) == b"".join(lab.guest.image.iter_plaintext(mark.gpa, 8))


def test_what_a_mirror_has_not_is_said(lab: Lab, tmp_path: Path) -> None:
    said = lab.run("regs", "--via", "mirror")
    assert said.status == 1
    assert "a mirror has no registers, and no monitor could be asked" in said.stderr
    said = lab.run("dump", "-o", str(tmp_path / "x"), "--via", "mirror")
    assert said.status == 3
    assert "the guest cannot be made to stand still" in said.stderr
    assert "--live" in said.stderr
    said = lab.run("status", "--via", "local")
    assert said.status == 2
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_of_killed_mirrors() -> None:
    """A mirror that were left would keep the guest alive in the firmware when its VMM ends."""
    with sev_host(cbit_pos=51) as host:
        with lab_guest(policy=0, backing="memfd", popen=host.popen) as guest:

            def killed() -> int:
                wanted = host.log.names().count("COPY_ENC_CONTEXT_FROM") + 1
                process = host.popen(
                    [
                        *(sys.executable, "-m", "sevkvm", "dump", *guest.facts["arguments"], *CBIT),
                        *("--via", "mirror", "--live", "--no-scan", "-o", "-", "--force"),
                    ],
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    env=SUBPROCESS_ENVIRONMENT,
                )
                while host.log.names().count("COPY_ENC_CONTEXT_FROM") < wanted and process.poll() is None:
                    time.sleep(0.001)
                process.kill()
                assert process.wait(10) == -signal.SIGKILL
                return process.pid

            for _ in range(2):
                undisturbed(guest.pid, killed)
            assert guest.process.poll() is None
            assert list(host.kernel.firmware.guests) == [1]
        with lab_guest(policy=0, popen=host.popen):  # whoever makes a guest next finds the old one gone
            assert len(host.kernel.firmware.guests) == 1


# ---- why there is no mirror


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with sev_host(cbit_pos=51) as host:
        yield host


def test_a_sev_es_guest(host: Host) -> None:
    with lab_guest(policy=4, backing="memfd", popen=host.popen) as guest:
        words = [*guest.facts["arguments"], *CBIT, "--via", "mirror"]
        mark = guest.image.landmarks[0]
        told = sevkvm(host, "xp", *words, "--json", "/8xb", hex(mark.gpa)).json
        assert bytes.fromhex(told["bytes"]) == b"".join(guest.image.iter_plaintext(mark.gpa, 8))
        said = sevkvm(host, "regs", *words)
        assert said.status == 1
        assert "SEV-ES guest: its registers are encrypted" in said.stderr


def test_a_vmm_that_ends_meanwhile(host: Host) -> None:
    """Its guest must not be kept alive by whoever looks at it."""
    with lab_guest(policy=0, backing="memfd", popen=host.popen) as guest:
        before = host.log.names().count("DBG_DECRYPT")
        dump = host.popen(
            [
                *(
                    sys.executable,
                    "-m",
                    "sevkvm",
                    "dump",
                    *guest.facts["arguments"],
                    *CBIT,
                    "--via",
                    "mirror",
                ),
                *("--live", "--no-scan", "--gpa", "0:6M", "-o", "-"),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=SUBPROCESS_ENVIRONMENT,
        )
        # it has begun, and cannot go on: nobody takes what it writes
        while host.log.names().count("DBG_DECRYPT") == before and dump.poll() is None:
            time.sleep(0.001)
        guest.process.kill()
        guest.process.wait(10)
        out, err = dump.communicate(timeout=60)
        assert dump.returncode == 1, err
        assert f"process {guest.pid} has ended" in err.decode()
        assert len(out) < 6 << 20


def test_anonymous_memory(host: Host) -> None:
    with lab_guest(policy=0, popen=host.popen) as guest:
        words = [*guest.facts["arguments"], *CBIT]
        # what protects it can be told all the same
        assert sevkvm(host, "status", *words, "--via", "mirror", "--json").json["via"] == "mirror"
        gpa = hex(guest.image.landmarks[0].gpa)
        said = sevkvm(host, "xp", *words, "--via", "mirror", gpa)
        assert said.status == 3
        assert "cannot be mapped: it is anonymous memory" in said.stderr
        assert "memory-backend-memfd,share=on" in said.stderr
        said = sevkvm(host, "xp", *words, gpa)
        assert (said.status, said.stderr) == (0, "")


def test_a_plain_guest_is_just_read(host: Host, tmp_path: Path) -> None:
    for backing in ("memfd", "anonymous"):
        with lab_guest(backing=backing, popen=host.popen) as guest:
            words = [*guest.facts["arguments"], "--via", "mirror"]
            status = sevkvm(host, "status", *words, "--json").json
            assert (status["sev"], status["via"]) == ("none", "mirror")
            out = tmp_path / backing
            more = ("--live", "--cr3", guest.facts["cr3"], "--gpa", "0:1M")
            assert sevkvm(host, "dump", *words, "-o", str(out), *more).status == 0
            assert out.read_bytes() == guest.host_bytes(0, 1 << 20)


PROGRAM = """
import socket
def enable(fd, capability, source):
    cap = bytearray(struct.pack("<II4Q64s", capability, 0, source, 0, 0, 0, b""))
    assert ioctl(fd, 0x4068AEA3, hva(cap)) == 0
memory = os.memfd_create("ram")
os.ftruncate(memory, RAM)
vm = launch(ram=pages(RAM, memory, mmap.MAP_SHARED if sys.argv[1] != "private" else mmap.MAP_PRIVATE))
fd = vm.fd
if sys.argv[1] == "mirror":
    mirror = Vm()
    enable(mirror.fd, 197, vm.fd)
    fd = mirror.fd
if sys.argv[1] == "closed":
    os.close(vm.sev)
if sys.argv[1] == "high":
    os.dup2(vm.sev, 700)
    os.close(vm.sev)
if sys.argv[1] == "many":
    for number in range(300, 700):
        os.dup2(vm.sev, number)
say(pid=os.getpid(), fd=fd, hva=vm.hva)
sys.stdin.read()
"""


@dataclass
class Program:
    """A VMM of another kind: 16 KiB of RAM, no monitor, no vCPU."""

    host: Host
    process: subprocess.Popen[str]
    facts: dict[str, int]

    def run(self, command: str, *more: str, shell: str = "") -> Said:
        words = ["--pid", str(self.facts["pid"]), "--vm-fd", str(self.facts["fd"]), *CBIT]
        words += ["--slot", f"0:16K:{self.facts['hva']:#x}"]
        return sevkvm(self.host, command, *words, *more, shell=shell)


@pytest.fixture
def vmm(request: pytest.FixtureRequest, host: Host) -> Iterator[Program]:
    process = start(host, PROGRAM, request.param, stdin=subprocess.PIPE)
    assert process.stdin
    assert process.stdout
    yield Program(host, process, json.loads(process.stdout.readline()))
    process.stdin.close()
    process.stdout.close()
    process.wait(20)


@pytest.mark.parametrize(
    ("vmm", "why"),
    [
        ("private", "it is a private mapping of a file (share=off)"),
        ("mirror", "it is a mirror itself, or not an encrypted VM"),
        ("closed", "the VMM has closed the /dev/sev that it launched the guest with"),
    ],
    indirect=["vmm"],
)
def test_other_reasons(vmm: Program, why: str) -> None:
    said = vmm.run("xp", "--via", "mirror", "0")
    assert said.status == 3
    assert why in said.stderr
    # by itself sevkvm goes another way, and says why when it is asked
    said = vmm.run("xp", "/16c", "0")
    told = vmm.run("status", "--json")
    if why.startswith("the VMM has closed"):
        assert "launched the guest with" in said.stderr
        assert told.status == 1
    else:
        assert said.status == 0, said.stderr
        assert told.json["via"] == "mirror" if "private" in why else told.json["via"] == "deputy"
        assert "private" in why or why in told.json["via_remark"]


@pytest.mark.parametrize(("vmm", "found"), [("many", True), ("high", False)], indirect=["vmm"])
def test_numbers_of_dev_sev(vmm: Program, found: bool) -> None:
    """It must be at the number that the guest was launched with, where only we may be in the way."""
    told = vmm.run("xp", "--json", "/16xb", "0", "--via", "mirror", shell="ulimit -n 1024")
    if found:
        assert bytes.fromhex(told.json["bytes"]) == b"plain text 16 b\n"
    else:  # it has been moved since
        assert "has closed the /dev/sev" in told.stderr
    said = vmm.run("xp", "0", "--via", "mirror", shell="ulimit -n 256")
    assert said.status == 3
    assert "/dev/sev must be descriptor" in said.stderr
    assert "our limit is 256" in said.stderr


def test_outside_of_the_pretend_host_there_is_no_mirror(host: Host) -> None:
    """Then the kernel underneath is asked, which knows of no encryption context."""
    if host.standin:
        pytest.skip("no /dev/kvm: VMs of the stand-in are files to everybody else")
    with lab_guest(policy=0, backing="memfd", popen=host.popen) as guest:
        done = subprocess.run(
            [sys.executable, "-m", "sevkvm", "status", *guest.facts["arguments"], "--json"],
            capture_output=True,
            text=True,
            timeout=60,
            env=os.environ | SUBPROCESS_ENVIRONMENT,
        )
        status = json.loads(done.stdout)
        assert (status["sev"], status["via"]) == ("sev", "deputy")
        assert status["via_remark"]
