"""The lab's encrypted guest on a pretend SEV host: what the host can and cannot read."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from sevkvm.abi.policybits import POLICY_ES, POLICY_NODBG
from sevkvm.lab.demo import SECRET, SHARED_MESSAGE
from sevkvm.lab.emulator import Machine
from sevkvm.shim.supervisor import KvmMode, SevHost
from tests.support.lab import SUBPROCESS_ENVIRONMENT, LabGuest, lab_guest
from tests.support.linux import require_sealed_linux
from tests.support.qemu import require_kvm
from tests.support.sevhost import Host, sev_host

pytestmark = pytest.mark.sev

BLOCK = 16


@pytest.fixture(params=["real", "standin"])
def host(request: pytest.FixtureRequest) -> Iterator[Host]:
    """A SEV host over the real KVM, and one where /dev/kvm is played as well."""
    if request.param == "real":
        require_kvm()
    with sev_host(kvm=request.param) as host:
        yield host


def tool(host: Host, guest: LabGuest, command: str, *arguments: str) -> Any:
    """What a command says in JSON of the guest. It runs on the guest's host, whose descriptors it must see."""
    process = host.popen(
        [sys.executable, "-m", "sevkvm", command, "--json", *guest.facts["arguments"], *arguments],
        stdout=subprocess.PIPE,
        env=SUBPROCESS_ENVIRONMENT,
    )
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    return json.loads(said)


def equal_blocks(first: bytes, second: bytes) -> int:
    """How many 16-byte blocks at the same place are the same."""
    assert len(first) == len(second)
    if first == second:
        return len(first) // BLOCK
    return sum(first[at : at + BLOCK] == second[at : at + BLOCK] for at in range(0, len(first), BLOCK))


@pytest.mark.parametrize("backing", ["anonymous", "memfd"])
def test_private_memory_is_noise_to_the_host_and_shared_memory_is_not(host: Host, backing: str) -> None:
    with lab_guest(policy=0, backing=backing, popen=host.popen) as guest:
        for region in guest.image.regions:
            seen = guest.host_bytes(region.gpa, region.nbytes)
            plain = guest.image.plaintext(region.gpa, region.nbytes)
            expected = 0 if region.private else region.nbytes // BLOCK
            assert equal_blocks(seen, plain) == expected, hex(region.gpa)
        secret, shared = guest.image.landmark("secret"), guest.image.landmark("shared")
        assert guest.host_bytes(shared.gpa, shared.nbytes) == SHARED_MESSAGE
        assert guest.host_bytes(secret.gpa, secret.nbytes) != SECRET


@pytest.mark.parametrize("policy", [0, POLICY_NODBG, POLICY_ES, POLICY_ES | POLICY_NODBG])
def test_the_launch_is_the_documented_one_and_ends_in_running(host: Host, policy: int) -> None:
    with lab_guest(policy=policy, vcpus=2, popen=host.popen) as guest:
        es = bool(policy & POLICY_ES)
        private = guest.image.private_ranges()
        if isinstance(host, SevHost):  # hardware keeps no log, and lets the state tell
            assert host.log.names() == [
                "ES_INIT" if es else "INIT",
                "LAUNCH_START",
                *["REG_REGION"] * len(guest.slots),
                *["LAUNCH_UPDATE_DATA"] * len(private),
                *(["LAUNCH_UPDATE_VMSA"] if es else []),
                "LAUNCH_MEASURE",
                "LAUNCH_MEASURE",
                "LAUNCH_FINISH",
            ]
            encrypted = [r.args for r in host.log.records if r.command == "LAUNCH_UPDATE_DATA"]
            assert [(args["hva"], args["nbytes"]) for args in encrypted] == [
                (guest.hva(gpa), nbytes) for gpa, nbytes in private
            ]
        assert len(bytes.fromhex(guest.facts["measurement"])) == 48
        assert guest.facts["policy"] == hex(policy)
        status = tool(host, guest, "status")
        assert (status["state"], status["policy"]) == ("running", hex(policy))
        assert status["sev"] == ("sev-es" if es else "sev")
        assert guest.stop() == 0


@pytest.mark.parametrize(("cbit_pos", "pcid"), [(47, False), (51, True)])
def test_the_vcpu_has_the_registers_of_the_image(host: Host, cbit_pos: int, pcid: bool) -> None:
    with lab_guest(policy=0, cbit_pos=cbit_pos, pcid=pcid, popen=host.popen) as guest:
        (vcpu,) = tool(host, guest, "regs")
        assert int(vcpu["cr3"], 16) == 1 << cbit_pos | 0x10000 | (5 if pcid else 0)
        assert guest.facts["cr3"] == vcpu["cr3"]
        expected = guest.image.vcpus[0].regs._asdict()
        assert {name: int(vcpu[name], 16) for name in expected} == expected


@pytest.mark.parametrize(("kvm", "levels"), [("real", 4), ("standin", 4), ("standin", 5)])
def test_the_encrypted_tables_say_what_the_image_expects(kvm: KvmMode, levels: int) -> None:
    if kvm == "real":
        require_kvm()
    with sev_host(kvm=kvm) as host, lab_guest(policy=0, levels=levels, popen=host.popen) as guest:
        mappings = [m for m in guest.image.mappings if m.page_nbytes > 4096 or m.gpa % 0x40000 == 0x4000]
        assert {m.private for m in mappings} == {True, False}
        answers = tool(host, guest, "translate", *(hex(m.gva) for m in mappings))
        for mapping, answer in zip(mappings, answers, strict=True):
            assert (int(answer["gva"], 16), int(answer["gpa"], 16)) == (mapping.gva, mapping.gpa)
            assert answer["page_size"] == mapping.page_nbytes
            for name in ("private", "writable", "user", "nx"):
                assert answer[name] == getattr(mapping, name), hex(mapping.gva)


def test_running_vcpus_wait_and_leave_when_the_guest_ends(host: Host) -> None:
    with lab_guest(policy=0, vcpus=2, run=True, popen=host.popen) as guest:
        assert guest.facts["running"] is True
        assert guest.stop() == 0
        assert "stopped" not in guest.stderr()


def test_the_kernel_tells_the_cbit_where_nobody_else_does() -> None:
    with sev_host(kvm="standin", cbit_pos=47) as host, lab_guest(policy=0, popen=host.popen) as guest:
        assert guest.facts["cbit_pos"] == 47


def test_a_sealed_linux_is_encrypted() -> None:
    machine = Machine()
    image = require_sealed_linux(machine).image
    nbytes = machine.ram_nbytes
    with (
        sev_host() as host,
        lab_guest(policy=0, linux=True, memory_mib=nbytes >> 20, image=image, popen=host.popen) as guest,
    ):
        banner = image.landmark("linux_banner")
        page = banner.gpa & ~0xFFF
        assert equal_blocks(guest.host_bytes(page, 4096), image.plaintext(page, 4096)) == 0
        (answer,) = tool(host, guest, "translate", hex(banner.gva))
        assert (int(answer["gpa"], 16), answer["private"]) == (banner.gpa, True)


@pytest.mark.parametrize("vm_type", ["legacy", "new"])
def test_a_sev_es_guest_is_known_by_its_policy(host: Host, vm_type: str) -> None:
    """Of the legacy type KVM hands out what it has left of the registers, of the new one nothing: neither is shown."""
    with lab_guest(policy=POLICY_ES, popen=host.popen, extra=["--vm-type", vm_type]) as guest:
        assert tool(host, guest, "status")["sev"] == "sev-es"
        argv = [sys.executable, "-m", "sevkvm", "regs", *guest.facts["arguments"]]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": SUBPROCESS_ENVIRONMENT}
        process = host.popen(argv, **pipes)
        said, complaint = process.communicate(timeout=30)
        assert (process.returncode, said) == (1, b"")
        assert b"its registers are encrypted" in complaint
        secret = guest.image.landmark("secret")
        data = tool(host, guest, "xp", "/16xb", hex(secret.gpa))
        assert bytes.fromhex(data["bytes"]) == guest.image.plaintext(secret.gpa, 16)
