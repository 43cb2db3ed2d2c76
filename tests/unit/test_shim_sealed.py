"""SEV-ES: who may be launched, and what the register ioctls say once the registers are sealed."""

from __future__ import annotations

import errno

import pytest

from sevkvm import errors
from sevkvm.abi import kvm as abi
from sevkvm.abi import sev
from sevkvm.abi.policybits import POLICY_ES
from sevkvm.host.kvm import VcpuFd
from sevkvm.shim.generation import Generation
from sevkvm.shim.kernel import Kernel
from sevkvm.shim.port import FakeGuest, FakePort, launch_guest
from sevkvm.shim.sealed_vcpu import REQUESTS

RAM = bytes(4096)
SREGS = {"cr0": 0x80000011, "cr3": 0x5000, "cr4": 0x20, "cr8": 3, "efer": 0x500, "apic_base": 0xFEE00800}


def ioctl(guest: FakeGuest, request: int, data: bytes = b"") -> int | bytes:
    """What a vCPU ioctl with a struct gives back, or its errno."""
    port, nbytes = guest.port, abi.request_nbytes(request)
    port.write(port.args_hva, data.ljust(nbytes, b"\xee"))
    try:
        port.ioctl(guest.vcpu_fds[0], request, port.args_hva)
    except errors.IoctlError as error:
        return error.errno
    return port.read(port.args_hva, nbytes)


def seal(*, new_vm_type: bool) -> FakeGuest:
    guest = launch_guest({0: RAM}, policy=POLICY_ES, es=True, finish=False, new_vm_type=new_vm_type)
    state = guest.vcpu()
    state.regs = state.regs._replace(rip=0x1234, rax=5, rsp=0x7000)
    state.sregs = state.sregs._replace(**SREGS)
    guest.port.sev_op(guest.vm_fd, sev.SevCmd.LAUNCH_UPDATE_VMSA)
    return guest


def test_es_init_needs_a_platform_that_was_initialised_for_it() -> None:
    port = FakePort()
    port.kernel.firmware.es_enabled = False
    with pytest.raises(errors.IoctlError) as refused:
        launch_guest({0: RAM}, policy=POLICY_ES, es=True, port=port)
    assert (refused.value.errno, port.sev_error()) == (errno.ENOTTY, sev.SEV_RET_NO_FW_CALL)


def test_vmsa_is_for_sev_es_guests() -> None:
    guest = launch_guest({0: RAM}, finish=False)
    with pytest.raises(errors.IoctlError) as refused:
        guest.port.sev_op(guest.vm_fd, sev.SevCmd.LAUNCH_UPDATE_VMSA)
    assert refused.value.errno == errno.ENOTTY


def test_a_vcpu_under_debug_cannot_be_sealed_but_those_before_it_are() -> None:
    guest = launch_guest({0: RAM}, policy=POLICY_ES, es=True, finish=False, vcpus=3)
    second = FakeGuest(guest.port, guest.vm_fd, guest.sev_fd, guest.vcpu_fds[1:])
    enable = (1).to_bytes(4, "little") + bytes(68)
    assert ioctl(second, abi.KVM_SET_GUEST_DEBUG, enable) == enable
    with pytest.raises(errors.IoctlError) as refused:
        guest.port.sev_op(guest.vm_fd, sev.SevCmd.LAUNCH_UPDATE_VMSA)
    assert refused.value.errno == errno.EINVAL
    assert [guest.vcpu(n).state.protected for n in range(3)] == [True, False, False]
    ioctl(second, abi.KVM_SET_GUEST_DEBUG, bytes(72))
    guest.port.sev_op(guest.vm_fd, sev.SevCmd.LAUNCH_UPDATE_VMSA)
    assert ioctl(second, abi.KVM_SET_GUEST_DEBUG, bytes(72)) == errno.EINVAL


@pytest.mark.parametrize(("generation", "expected"), [("old", 0), ("new", errno.EBUSY)])
def test_a_vcpu_that_is_being_made(generation: Generation, expected: int) -> None:
    port = FakePort(Kernel(generation=generation))
    guest = launch_guest({0: RAM}, policy=POLICY_ES, es=True, finish=False, port=port)
    port.kernel.vms[0].vcpus_in_creation = 1
    result = 0
    try:
        port.sev_op(guest.vm_fd, sev.SevCmd.LAUNCH_UPDATE_VMSA)
    except errors.IoctlError as error:
        result = error.errno
    assert result == expected


@pytest.mark.parametrize("request_number", REQUESTS, ids=abi.request_name)
def test_new_vm_types_refuse(request_number: int) -> None:
    assert ioctl(seal(new_vm_type=True), request_number, bytes(4096)) == errno.EINVAL


@pytest.mark.parametrize("request_number", REQUESTS, ids=abi.request_name)
def test_before_sealing_everything_is_as_ever(request_number: int) -> None:
    guest = launch_guest({0: RAM}, policy=POLICY_ES, es=True, finish=False)
    if request_number != abi.KVM_GET_XSAVE2:  # needs a capability of its own
        assert isinstance(ioctl(guest, request_number, bytes(4096)), bytes)


def test_the_default_type_tells_five_control_registers_and_zeros() -> None:
    guest = seal(new_vm_type=False)
    sregs = VcpuFd(guest.port, guest.vcpu_fds[0], 0).get_sregs()
    told = abi.Sregs.unpack(bytes(abi.SREGS_NBYTES))._replace(**{**SREGS, "cr3": 0})
    assert sregs == told
    sregs2 = ioctl(guest, abi.KVM_GET_SREGS2)
    assert sregs2 == told.pack()[:280] + bytes(40)


def test_general_registers_of_the_default_type_are_stale_and_then_next_to_nothing() -> None:
    guest = seal(new_vm_type=False)
    vcpu = VcpuFd(guest.port, guest.vcpu_fds[0], 0)
    assert (vcpu.get_regs().rip, vcpu.get_regs().rsp) == (0x1234, 0x7000)
    with pytest.raises(errors.IoctlError):
        guest.port.ioctl(guest.vcpu_fds[0], abi.KVM_RUN)
    assert vcpu.get_regs() == abi.Regs.unpack(bytes(abi.REGS_NBYTES))._replace(rflags=2)


def test_setting_registers_of_the_default_type_changes_only_apic_base() -> None:
    guest = seal(new_vm_type=False)
    given = abi.Sregs.unpack(bytes(abi.SREGS_NBYTES))._replace(cr0=1, cr3=2, cr4=3, apic_base=0xFEE00000)
    assert isinstance(ioctl(guest, abi.KVM_SET_SREGS, given.pack()), bytes)
    told = VcpuFd(guest.port, guest.vcpu_fds[0], 0).get_sregs()
    assert (told.cr0, told.cr3, told.cr4, told.apic_base) == (SREGS["cr0"], 0, SREGS["cr4"], 0xFEE00000)


def test_floating_point_of_the_default_type_reads_as_zeros_whatever_is_set() -> None:
    guest = seal(new_vm_type=False)
    for get, put in ((abi.KVM_GET_FPU, abi.KVM_SET_FPU), (abi.KVM_GET_XSAVE, abi.KVM_SET_XSAVE)):
        assert isinstance(ioctl(guest, put, b"\x11" * 4096), bytes)
        assert ioctl(guest, get) == bytes(abi.request_nbytes(get))
