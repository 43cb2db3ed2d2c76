"""Which VM is meant, among real ones."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from sevkvm import errors
from sevkvm.host import discovery
from tests.support.qemu import qemu, require_kvm_qemu

pytestmark = pytest.mark.kvm


@pytest.fixture(autouse=True)
def _needs_qemu() -> None:
    require_kvm_qemu()


def test_a_real_qemu_is_described() -> None:
    with qemu(cpus=2) as vmm:
        vm = discovery.resolve(vmm.pid, None)
        assert vm == discovery.resolve(vmm.pid, vmm.vm_fd)
        assert vm in discovery.find_vms()
        assert (vm.pid, vm.vm_fds, vm.name, vm.uid) == (vmm.pid, (vmm.vm_fd,), "sevkvm-test", os.getuid())
        assert vm.vcpu_fds == {0: vmm.vcpu_fd(0), 1: vmm.vcpu_fd(1)}
        assert (vm.vcpus_ambiguous, vm.has_sev_device) == (False, False)
        with pytest.raises(errors.VmNotFound, match="is not a KVM VM"):
            discovery.resolve(vmm.pid, vmm.vcpu_fd(0))


VMM_WITH_CHILD = """
import fcntl, os, subprocess, sys
kvm = os.open("/dev/kvm", os.O_RDWR)
vms = [fcntl.ioctl(kvm, 0xAE01, 0) for _ in range(2)]
vcpus = [fcntl.ioctl(vms[0], 0xAE41, index) for index in range(int(sys.argv[2]))]
os.dup2(vms[1], 77)
os.dup2(vms[1], 78)
os.set_inheritable(77, True)
print(os.getpid(), vms[0], vms[1], flush=True)
child = subprocess.run([sys.executable, "-c", sys.argv[1], str(vms[1])], pass_fds=(77,))
sys.exit(child.returncode)
"""
ASK_ABOUT_77 = """
import json, os
from sevkvm.host import discovery
vm = discovery.resolve(None, 77)
alone = discovery.resolve(os.getppid(), 78)
print(json.dumps([vm.pid, vm.vm_fds, vm.vm_fd, vm.vcpus_ambiguous, vm.holders == (os.getpid(),), alone.vm_fds]))
"""


@pytest.mark.parametrize("vcpus", [0, 1])
def test_an_inherited_descriptor_leads_to_the_process_that_made_it(vcpus: int) -> None:
    argv = [sys.executable, "-c", textwrap.dedent(VMM_WITH_CHILD), ASK_ABOUT_77, str(vcpus)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, cwd=Path.cwd())
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    pid, _, fd = (int(word) for word in first.split())
    ambiguous = "true" if vcpus else "false"  # two VMs in one process: whose vCPU is it?
    fds = f"[{fd}, 77, 78]"
    assert second == f"[{pid}, {fds}, {fd}, {ambiguous}, true, {fds}]"
