"""How to test a VMM of your own on a pretend SEV host. Needs: pip install 'sevkvm[shim]' pytest, and a C compiler.

pytest test_my_vmm.py
"""

import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def my_vmm(tmp_path_factory):
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    program = tmp_path_factory.mktemp("my_vmm") / "my_vmm"
    subprocess.run([compiler, "-Wall", "-Wextra", "-o", program, HERE / "my_vmm.c"], check=True)
    return program


def start(host, my_vmm, policy="0"):
    pipe = subprocess.PIPE
    return host.popen([my_vmm, policy], stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def facts_of(vmm):
    """What it says until its guest runs."""
    facts = {}
    for line in vmm.stdout:
        word, _, value = line.strip().partition(" ")
        if word == "running":
            return facts
        facts[word] = value
    raise AssertionError(vmm.stderr.read())


def test_the_guest_is_launched_as_the_kernel_documents_it(sev_host, my_vmm):
    with start(sev_host, my_vmm) as vmm:
        facts = facts_of(vmm)
        (guest,) = sev_host.kernel.firmware.guests.values()
        assert guest.policy.value == 0
    assert len(bytes.fromhex(facts["measurement"])) == 48
    assert sev_host.log.names() == [
        "INIT2",
        "REG_REGION",
        "LAUNCH_START",
        "LAUNCH_UPDATE_DATA",
        "LAUNCH_MEASURE",
        "LAUNCH_FINISH",
    ]


def test_its_memory_is_ciphertext(sev_host, my_vmm):
    with start(sev_host, my_vmm) as vmm, open(f"/proc/{vmm.pid}/mem", "rb") as memory:
        memory.seek(int(facts_of(vmm)["ram"], 16))
        assert b"GGGG" not in memory.read(0x10000)


def test_it_ends_well(sev_host, my_vmm):
    with start(sev_host, my_vmm) as vmm:
        facts_of(vmm)
        _, complaints = vmm.communicate("\n", timeout=10)
    assert (vmm.returncode, complaints) == (0, "")


@pytest.mark.sev_host(faults=["launch_update_data:status=RESOURCE_LIMIT"])
def test_it_says_what_the_firmware_refused(sev_host, my_vmm):
    with start(sev_host, my_vmm) as vmm:
        _, complaints = vmm.communicate(timeout=10)
    assert "the firmware says 0x17" in complaints
    assert "LAUNCH_UPDATE_DATA" in complaints


@pytest.mark.sev_host(faults=["psp-dead:after=3"])
def test_a_secure_processor_that_dies_is_no_success(sev_host, my_vmm):
    with start(sev_host, my_vmm) as vmm:
        out, complaints = vmm.communicate(timeout=10)
    assert vmm.returncode == 1
    assert "running" not in out
    assert "busy" in complaints


@pytest.mark.sev_host(kvm="standin", cbit_pos=47)
@pytest.mark.parametrize("policy", ["0x0", "0x1"])
def test_where_there_is_no_kvm_at_all(sev_host, my_vmm, policy):
    with start(sev_host, my_vmm, policy) as vmm:
        facts_of(vmm)
        (guest,) = sev_host.kernel.firmware.guests.values()
        assert guest.policy.debug_allowed == (policy == "0x0")
