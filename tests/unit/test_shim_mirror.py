"""Mirror VMs, and contexts that move: KVM_CAP_VM_COPY_ENC_CONTEXT_FROM and _MOVE_."""

from __future__ import annotations

import errno

import pytest

from sevkvm import errors
from sevkvm.abi import kvm as abi
from sevkvm.abi import sev
from sevkvm.abi.policybits import POLICY_ES
from sevkvm.host.kvm import VmFd
from sevkvm.shim.mini_kvm import VmFile
from sevkvm.shim.mirror import ALLOWED_ON_MIRRORS
from sevkvm.shim.port import FakeGuest, FakePort, launch_guest

RAM = bytes(range(256)) * 32  # two pages
COPY, MOVE = abi.KVM_CAP_VM_COPY_ENC_CONTEXT_FROM, abi.KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM


def enable(port: FakePort, vm_fd: int, capability: int, source_fd: int, flags: int = 0) -> int:
    """The errno of KVM_ENABLE_CAP, 0 for success."""
    port.write(port.args_hva, abi.EnableCap(capability, flags, source_fd).pack())
    try:
        return port.ioctl(vm_fd, abi.KVM_ENABLE_CAP, port.args_hva)
    except errors.IoctlError as error:
        return error.errno


def op(port: FakePort, vm_fd: int, command: int, data: bytes = b"") -> int:
    """The errno of a command, 0 for success."""
    try:
        port.sev_op(vm_fd, command, data)
    except errors.IoctlError as error:
        return error.errno
    return 0


@pytest.fixture
def guest() -> FakeGuest:
    return launch_guest({0: RAM})


def model(guest: FakeGuest, vm_fd: int) -> VmFile:
    file = guest.port.files[vm_fd]
    assert isinstance(file, VmFile)
    return file


def test_a_mirror_in_another_process_decrypts(guest: FakeGuest) -> None:
    other = FakePort(guest.port.kernel, pid=77)
    region = guest.port.memory.find(guest.hva(0))
    assert region
    alias = other.memory.map(region.data, alias_of=region)
    placeholder, mirror_fd = other.open_sev(), other.create_vm()
    assert placeholder == guest.sev_fd
    del other.files[placeholder]
    other.files[90] = guest.port.files[guest.vm_fd]  # passed over a socket
    assert enable(other, mirror_fd, COPY, 90) == 0
    vm = VmFd(other, mirror_fd)
    with pytest.raises(errors.IoctlError) as refused:
        vm.sev_guest_status()  # the number of the source's /dev/sev, in this table
    assert refused.value.errno == errno.EBADF
    other.files[guest.sev_fd] = guest.port.files[guest.sev_fd]
    assert vm.sev_guest_status() == VmFd(guest.port, guest.vm_fd).sev_guest_status()
    vm.sev_dbg_decrypt(alias.hva, other.scratch_hva, len(RAM))
    assert other.read(other.scratch_hva, len(RAM)) == RAM
    # the source itself stays out of reach
    assert op(other, 90, sev.SevCmd.GUEST_STATUS, bytes(12)) == errno.EIO


def test_what_a_mirror_may_be_asked(guest: FakeGuest) -> None:
    port = guest.port
    mirror = port.create_vm()
    assert enable(port, mirror, COPY, guest.vm_fd) == 0
    for command in [*sev.SevCmd, 999]:
        status = op(port, mirror, command, bytes(48))
        if command in ALLOWED_ON_MIRRORS:
            assert (status, port.sev_error()) != (errno.EINVAL, sev.SEV_RET_NO_FW_CALL) or command in (
                sev.SevCmd.DBG_DECRYPT,
                sev.SevCmd.DBG_ENCRYPT,
            )  # whose length is 0 here
        else:
            assert (status, port.sev_error()) == (errno.EINVAL, sev.SEV_RET_NO_FW_CALL)
    port.write(port.args_hva, abi.pack_enc_region(guest.hva(0), len(RAM)))
    for request in (abi.KVM_MEMORY_ENCRYPT_REG_REGION, abi.KVM_MEMORY_ENCRYPT_UNREG_REGION):
        with pytest.raises(errors.IoctlError) as refused:
            port.ioctl(mirror, request, port.args_hva)
        assert refused.value.errno == errno.EINVAL


def test_who_cannot_become_a_mirror_or_have_one(guest: FakeGuest) -> None:
    port = guest.port
    mirror, plain, with_vcpu = port.create_vm(), port.create_vm(), port.create_vm()
    port.create_vcpu(with_vcpu)
    assert enable(port, mirror, COPY, 999) == errno.EBADF
    assert enable(port, mirror, COPY, guest.sev_fd) == errno.EBADF
    assert enable(port, mirror, COPY, guest.vcpu_fds[0]) == errno.EBADF
    assert enable(port, mirror, COPY, guest.vm_fd, flags=1) == errno.EINVAL
    assert enable(port, mirror, COPY, mirror) == errno.EINVAL
    assert enable(port, mirror, COPY, plain) == errno.EINVAL
    assert enable(port, with_vcpu, COPY, guest.vm_fd) == errno.EINVAL
    assert enable(port, guest.vm_fd, COPY, guest.vm_fd) == errno.EINVAL
    assert enable(port, mirror, COPY, guest.vm_fd) == 0
    assert enable(port, mirror, COPY, guest.vm_fd) == errno.EINVAL
    assert enable(port, plain, COPY, mirror) == errno.EINVAL  # no mirrors of mirrors
    other = FakePort(port.kernel, pid=77)
    other.files.update(port.files)
    assert enable(other, plain, COPY, guest.vm_fd) == errno.EIO  # the destination is another process's
    assert [port.ioctl(mirror, abi.KVM_CHECK_EXTENSION, which) for which in (COPY, MOVE)] == [1, 1]


def test_a_mirror_keeps_the_guest_alive(guest: FakeGuest) -> None:
    port, kernel = guest.port, guest.port.kernel
    mirrors = [port.create_vm(), port.create_vm()]
    for mirror in mirrors:
        assert enable(port, mirror, COPY, guest.vm_fd) == 0
    kernel.destroy_vm(model(guest, guest.vm_fd).vm)
    assert VmFd(port, mirrors[0]).sev_guest_status().state == sev.GuestState.RUNNING
    kernel.destroy_vm(model(guest, mirrors[0]).vm)
    assert len(kernel.firmware.guests) == 1
    fresh = launch_guest({0: RAM}, port=port)
    handles = set(kernel.firmware.guests)
    assert len({kernel.firmware.guests[handle].asid for handle in handles}) == 2
    kernel.destroy_vm(model(guest, mirrors[1]).vm)
    assert set(kernel.firmware.guests) == handles - {1}
    kernel.destroy_vm(model(fresh, fresh.vm_fd).vm)
    assert not kernel.vms


def test_a_closed_mirror_leaves_the_guest_alone(guest: FakeGuest) -> None:
    mirror = guest.port.create_vm()
    assert enable(guest.port, mirror, COPY, guest.vm_fd) == 0
    guest.port.kernel.destroy_vm(model(guest, mirror).vm)
    assert VmFd(guest.port, guest.vm_fd).sev_guest_status().state == sev.GuestState.RUNNING


def test_moving_kills_the_source(guest: FakeGuest) -> None:
    port = guest.port
    mirror, target = port.create_vm(), port.create_vm()
    assert enable(port, mirror, COPY, guest.vm_fd) == 0
    assert enable(port, target, MOVE, target) == errno.EINVAL
    model(guest, target).vm.vcpus_in_creation = 1
    assert enable(port, target, MOVE, guest.vm_fd) == errno.EBUSY
    model(guest, target).vm.vcpus_in_creation = 0
    assert enable(port, target, MOVE, guest.vm_fd) == 0
    assert op(port, guest.vm_fd, sev.SevCmd.GUEST_STATUS, bytes(12)) == errno.EIO
    assert port.sev_error() == sev.SEV_RET_NO_FW_CALL
    with pytest.raises(errors.IoctlError) as refused:
        port.ioctl(guest.vcpu_fds[0], abi.KVM_GET_REGS, port.args_hva)
    assert refused.value.errno == errno.EIO
    # the number of the descriptor is not moved: 0 is stdin
    assert op(port, target, sev.SevCmd.GUEST_STATUS, bytes(12)) == errno.EBADF
    port.files[0] = port.files[guest.sev_fd]
    assert op(port, target, sev.SevCmd.GUEST_STATUS, bytes(12)) == 0
    # mirrors belong to the destination now
    port.kernel.destroy_vm(model(guest, guest.vm_fd).vm)
    port.kernel.destroy_vm(model(guest, target).vm)
    assert op(port, mirror, sev.SevCmd.GUEST_STATUS, bytes(12)) == 0
    port.kernel.destroy_vm(model(guest, mirror).vm)
    assert not port.kernel.firmware.guests


def test_a_sev_es_guest_moves_only_sealed_and_to_as_many_vcpus() -> None:
    guest = launch_guest({0: RAM}, policy=POLICY_ES, es=True, finish=False)
    port = guest.port
    target = port.create_vm()
    assert enable(port, target, MOVE, guest.vm_fd) == errno.EINVAL
    port.create_vcpu(target)
    assert enable(port, target, MOVE, guest.vm_fd) == errno.EINVAL
    port.sev_op(guest.vm_fd, sev.SevCmd.LAUNCH_UPDATE_VMSA)
    assert enable(port, target, MOVE, guest.vm_fd) == 0
    assert model(guest, target).vm.vcpus[0].protected
