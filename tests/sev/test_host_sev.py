"""The SEV device and the discovery of encrypted guests, on a pretend SEV host and on a real one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sevkvm.abi import sev
from sevkvm.host import discovery
from sevkvm.host.sevdev import SevDevice
from sevkvm.shim.supervisor import KvmMode
from tests.support.lab import SUBPROCESS_ENVIRONMENT, lab_guest
from tests.support.qemu import qemu, require_kvm, require_kvm_qemu
from tests.support.sevhost import Host, require_kvm_mode, sev_host

pytestmark = pytest.mark.sev

ASK = """
import json
from sevkvm.host.sevdev import SevDevice
with SevDevice() as device:
    print(json.dumps(device.platform_status()._asdict()))
"""


def platform_status(host: Host) -> dict[str, int]:
    argv = [sys.executable, "-c", ASK]
    process = host.popen(argv, stdout=subprocess.PIPE, env=SUBPROCESS_ENVIRONMENT)
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    status: dict[str, int] = json.loads(said)
    return status


@pytest.mark.parametrize("kvm", ["real", "standin"])
def test_platform_status_counts_guests(kvm: KvmMode) -> None:
    require_kvm_mode(kvm)
    with sev_host(kvm=kvm) as host:
        before = platform_status(host)
        with lab_guest(policy=0, popen=host.popen):
            during = platform_status(host)
    # others may have guests on hardware
    assert during["guest_count"] == before["guest_count"] + 1
    assert during["state"] == sev.PlatformState.WORKING
    assert set(before) == set(sev.PlatformStatus._fields)


def test_platform_status_of_this_host() -> None:
    if not Path("/dev/sev").exists():
        pytest.skip("no /dev/sev: this host has no AMD SEV")
    with SevDevice() as device:
        status = device.platform_status()
    assert status.state in list(sev.PlatformState)
    assert status.api_major >= 0


def test_an_encrypted_guest_shows_from_outside_its_host() -> None:
    require_kvm_mode("real")
    require_kvm()
    with sev_host(kvm="real") as host, lab_guest(policy=0, vcpus=2, popen=host.popen) as guest:
        vm = discovery.resolve(guest.pid, None)
        assert vm.has_sev_device
        assert vm.vm_fd == guest.facts["vm_fd"]
        assert list(vm.vcpu_fds.values()) == guest.facts["vcpu_fds"]
        assert vm in discovery.find_vms()


def test_an_encrypted_qemu_shows_from_outside_its_host() -> None:
    require_kvm_qemu()
    require_kvm_mode("real")
    with sev_host(kvm="real") as host, qemu(sev_policy=0, popen=host.popen) as vmm:
        assert discovery.resolve(vmm.pid, vmm.vm_fd).has_sev_device
        assert discovery.monitor_socket(vmm.pid) == vmm.qmp_path
