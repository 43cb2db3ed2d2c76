from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.qemu import qemu, require_kvm_qemu, require_qemu, start_qemu

pytestmark = pytest.mark.kvm


@pytest.mark.parametrize("machine", ["q35", "pc"])
@pytest.mark.parametrize("memfd", [False, True])
def test_kvm_qemu_answers_and_ends(machine: str, memfd: bool) -> None:
    require_kvm_qemu()
    with qemu(machine=machine, memfd=memfd, sandbox=True, cpus=2) as vmm:
        assert "VM status: paused" in vmm.hmp("info status")
        assert len({vmm.vm_fd, vmm.vcpu_fd(0), vmm.vcpu_fd(1)}) == 3
        assert vmm.gpa2hva(0x2000) == vmm.gpa2hva(0) + 0x2000
        assert Path(vmm.qmp_path).exists()
    assert not Path(f"/proc/{vmm.pid}").exists()
    assert not vmm.directory.exists()


def test_ram_above_4g_needs_no_host_memory() -> None:
    require_kvm_qemu()
    with qemu(ram="5G") as vmm:
        assert vmm.gpa2hva(1 << 32) - vmm.gpa2hva(0) == 2 << 30  # q35 keeps 2 GiB below 4 GiB


def test_tcg_qemu_has_no_vm_fd() -> None:
    require_qemu()
    with qemu(accel="tcg") as vmm:
        assert vmm.fds("anon_inode:kvm-vm") == []


def test_a_qemu_that_refuses_its_options_says_why() -> None:
    require_qemu()
    with pytest.raises(AssertionError, match="nonsense"):
        start_qemu(accel="tcg", extra=["-nonsense"])
