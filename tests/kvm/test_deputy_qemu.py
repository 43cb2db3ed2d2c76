"""The deputy in an unmodified QEMU on the real /dev/kvm."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sevkvm import errors
from sevkvm.host.deputy import Deputy
from sevkvm.host.kvm import VcpuFd, VmFd
from tests.support.build import compile_program
from tests.support.qemu import QemuVmm, qemu, require_kvm_qemu
from tests.support.victim import DEPUTY_SOURCES

pytestmark = pytest.mark.kvm


def shape(pid: int) -> tuple[int, int, int]:
    proc = Path(f"/proc/{pid}")
    return (
        len(list((proc / "task").iterdir())),
        len(list((proc / "fd").iterdir())),
        len((proc / "maps").read_text().splitlines()),
    )


@pytest.fixture(scope="module", params=["plain", "sandboxed", "running"])
def vmm(request: pytest.FixtureRequest) -> Iterator[QemuVmm]:
    require_kvm_qemu()
    with qemu(sandbox=request.param == "sandboxed", stopped=request.param != "running", cpus=2) as vmm:
        yield vmm


def test_the_sandbox_is_on_where_we_say_so(request: pytest.FixtureRequest, vmm: QemuVmm) -> None:
    status = Path(f"/proc/{vmm.pid}/status").read_text()
    sandboxed = "sandboxed" in request.node.name
    assert ("Seccomp:\t2" in status) == sandboxed


def test_vm_and_vcpu_ioctls_and_nothing_stays(vmm: QemuVmm) -> None:
    with Deputy(vmm.pid):
        pass
    before = shape(vmm.pid)
    with Deputy(vmm.pid) as deputy:
        vm = VmFd(deputy, vmm.vm_fd)
        assert not vm.sev_available()
        with pytest.raises(errors.IoctlError, match="ENOTTY"):
            vm.sev_guest_status()
        deputy.hold()
        try:
            for index in range(2):
                vcpu = VcpuFd(deputy, vmm.vcpu_fd(index), index)
                assert vcpu.get_sregs().cs.limit
                assert vcpu.get_regs().rflags & 2  # bit 1 is always set
                assert vcpu.get_cpuid2()
        finally:
            deputy.release()
    assert shape(vmm.pid) == before
    assert "VM status" in vmm.hmp("info status")


def test_registers_are_those_the_monitor_shows(vmm: QemuVmm) -> None:
    if "running" in vmm.hmp("info status"):
        pytest.skip("this guest runs: its registers change between two questions")
    with Deputy(vmm.pid) as deputy:
        deputy.hold()
        vcpu = VcpuFd(deputy, vmm.vcpu_fd(0), 0)
        regs, sregs = vcpu.get_regs(), vcpu.get_sregs()
    text = vmm.hmp("info registers")
    assert f"RIP={regs.rip:016x}" in text or f"EIP={regs.rip:08x}" in text
    assert f"CR0={sregs.cr0:08x}" in text


def test_death_at_every_ptrace_request(vmm: QemuVmm, tmp_path: Path) -> None:
    """tests/host does this to a small program; here a sandbox and, in one case, running vCPUs look on."""
    suicide = compile_program("deputy_suicide", tmp_path, *DEPUTY_SOURCES)
    with Deputy(vmm.pid):
        pass
    before = shape(vmm.pid)
    survived = subprocess.run(
        [suicide, str(vmm.pid), "0"], capture_output=True, text=True, timeout=30, check=True
    )
    for last_wish in range(1, int(survived.stdout) + 1):
        died = subprocess.run([suicide, str(vmm.pid), str(last_wish)], capture_output=True, timeout=30)
        assert died.returncode in (-9, 0), f"checkpoint {last_wish}: {died.stderr.decode()}"
        assert vmm.process.poll() is None, f"QEMU died at checkpoint {last_wish}"
        assert "VM status" in vmm.hmp("info status")
    with Deputy(vmm.pid) as deputy:
        assert deputy.info().leftovers > 0
    deadline = time.monotonic() + 5
    while shape(vmm.pid) != before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert shape(vmm.pid) == before
