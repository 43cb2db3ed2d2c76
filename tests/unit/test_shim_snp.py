"""SEV-SNP guests: nothing can be debugged, and the tool says why."""

from __future__ import annotations

import errno
import struct

import pytest

from sevkvm import errors
from sevkvm.abi import kvm as abi
from sevkvm.abi import sev
from sevkvm.host.kvm import VcpuFd, VmFd
from sevkvm.memory.policy import SevKind, ask_kernel, require_debug
from sevkvm.shim.port import SNP_POLICY, FakeGuest, FakePort, launch_snp_guest

RAM = bytes(4096)
UNTOUCHED = sev.SEV_RET_NO_FW_CALL


def op(port: FakePort, vm_fd: int, command: int, data: bytes = bytes(96), sev_fd: int = 0) -> tuple[int, int]:
    """(errno or 0, the error field)."""
    try:
        port.sev_op(vm_fd, command, data, sev_fd=sev_fd)
    except errors.IoctlError as error:
        return error.errno, port.sev_error()
    return 0, port.sev_error()


@pytest.fixture
def guest() -> FakeGuest:
    return launch_snp_guest({0: RAM})


def start_of(policy: int = SNP_POLICY, flags: int = 0) -> bytes:
    return struct.pack("<Q16xH38x", policy, flags)


def update_of(hva: int, nbytes: int = 4096, kind: int = 1, flags: int = 0) -> bytes:
    return struct.pack("<QQQBxH36x", 0x100, hva, nbytes, kind, flags)


def test_the_tool_refuses_with_the_reason(guest: FakeGuest) -> None:
    info = ask_kernel(VmFd(guest.port, guest.vm_fd))
    assert info.kind is SevKind.SEV_SNP
    assert info.policy is None
    with pytest.raises(errors.PlatformUnsupported) as refused:
        require_debug(info)
    assert refused.value.exit_code == errors.EXIT_FORBIDDEN
    assert "SEV-SNP" in str(refused.value)


def test_every_command_below_100_is_eperm_and_leaves_the_struct_alone(guest: FakeGuest) -> None:
    for command in (*(c for c in sev.SevCmd if c < 100), 50, 99):
        assert op(guest.port, guest.vm_fd, command) == (errno.EPERM, UNTOUCHED)
    assert op(guest.port, guest.vm_fd, 103) == (errno.EINVAL, UNTOUCHED)


def test_before_init2_it_is_a_vm_like_any_other() -> None:
    port = FakePort()
    vm_fd = port.create_vm(abi.KVM_X86_SNP_VM)
    assert op(port, vm_fd, sev.SevCmd.GUEST_STATUS) == (errno.ENOTTY, UNTOUCHED)
    assert op(port, vm_fd, sev.SevCmd.SNP_LAUNCH_START, start_of()) == (errno.ENOTTY, UNTOUCHED)
    assert op(port, vm_fd, sev.SevCmd.SNP_LAUNCH_UPDATE) == (errno.EINVAL, UNTOUCHED)
    assert op(port, vm_fd, sev.SevCmd.SNP_LAUNCH_FINISH) == (errno.ENOTTY, UNTOUCHED)


def test_launching_step_by_step() -> None:
    port = FakePort()
    vm_fd, sev_fd = port.create_vm(abi.KVM_X86_SNP_VM), port.open_sev()
    port.sev_op(vm_fd, sev.SevCmd.INIT2, sev.SevInit().pack())
    page = port.map(RAM).hva
    start, update, finish = (
        sev.SevCmd.SNP_LAUNCH_START,
        sev.SevCmd.SNP_LAUNCH_UPDATE,
        sev.SevCmd.SNP_LAUNCH_FINISH,
    )
    assert op(port, vm_fd, update, update_of(page)) == (errno.EINVAL, UNTOUCHED)
    assert op(port, vm_fd, finish) == (errno.EINVAL, UNTOUCHED)
    for bad in (start_of(0), start_of(1 << 17 | 1 << 40), start_of(flags=1)):
        assert op(port, vm_fd, start, bad, sev_fd) == (errno.EINVAL, UNTOUCHED)
    assert op(port, vm_fd, start, start_of(), vm_fd) == (errno.ENOTTY, UNTOUCHED)  # no /dev/sev
    assert op(port, vm_fd, start, start_of(), sev_fd) == (0, 0)
    assert op(port, vm_fd, start, start_of(), sev_fd) == (errno.EINVAL, UNTOUCHED)
    for bad in (update_of(page, 100), update_of(page, kind=2), update_of(page, flags=1)):
        assert op(port, vm_fd, update, bad, sev_fd) == (errno.EINVAL, UNTOUCHED)
    assert op(port, vm_fd, update, update_of(0xDEAD000), sev_fd) == (errno.EIO, 0)
    back = port.sev_op(vm_fd, update, update_of(page), sev_fd=sev_fd)
    assert struct.unpack_from("<QQQ", back) == (0x101, page + 4096, 0)
    assert op(port, vm_fd, finish, sev_fd=sev_fd) == (0, 0)
    assert op(port, vm_fd, finish, sev_fd=sev_fd) == (errno.EIO, sev.FwStatus.INVALID_GUEST_STATE)
    assert op(port, vm_fd, update, update_of(page), sev_fd) == (
        errno.EIO,
        sev.FwStatus.INVALID_GUEST_STATE,
    )
    firmware = port.kernel.firmware
    assert firmware.counts["SNP_LAUNCH_UPDATE"] == 2
    port.kernel.destroy_vm(port.kernel.vms[0])
    assert not firmware.snp_guests


def test_registers_are_sealed(guest: FakeGuest) -> None:
    with pytest.raises(errors.IoctlError) as refused:
        VcpuFd(guest.port, guest.vcpu_fds[0], 0).get_regs()
    assert refused.value.errno == errno.EINVAL
