"""What programs ask before they make a SEV VM, and how a VM becomes one, through door 2."""

from __future__ import annotations

import errno

import pytest

from sevkvm import errors
from sevkvm.abi import kvm, sev
from sevkvm.shim.kernel import Kernel
from sevkvm.shim.mini_kvm import VmFile
from sevkvm.shim.port import FakePort, launch_guest
from sevkvm.shim.vm import Vm

DEFAULT, SEV, ES, SNP = 0, 2, 3, 4
DEBUG_SWAP = 0x20


def answer(port: FakePort, fd: int, request: int, argument: int) -> int:
    try:
        return port.ioctl(fd, request, argument)
    except errors.IoctlError as failure:
        return -failure.errno


def init(port: FakePort, fd: int, command: sev.SevCmd, data: bytes = b"") -> int:
    try:
        port.sev_op(fd, command, data)
    except errors.IoctlError as failure:
        assert port.sev_error() == sev.SEV_RET_NO_FW_CALL
        return -failure.errno
    return 0


def vm_of(port: FakePort, fd: int) -> Vm:
    file = port.files[fd]
    assert isinstance(file, VmFile)
    return file.vm


def test_the_vm_types_are_those_of_the_firmware() -> None:
    port = FakePort()
    system, vm = port.open_kvm(), port.create_vm()
    for fd in (system, vm):
        assert port.ioctl(fd, 0xAE03, 235) == 1 << DEFAULT | 1 << SEV | 1 << ES
        assert port.ioctl(fd, 0xAE03, 197) == port.ioctl(fd, 0xAE03, 206) == 1
        assert port.ioctl(fd, 0xAE03, 235 + (1 << 32)) == 0
    port.kernel.firmware.es_enabled = False
    assert port.ioctl(system, 0xAE03, 235) == 1 << DEFAULT | 1 << SEV
    assert answer(port, system, 0xAE01, ES) == -errno.EINVAL


@pytest.mark.parametrize("vm_type", [DEFAULT, SEV, ES])
def test_create_vm_of_a_type(vm_type: int) -> None:
    port = FakePort()
    fd = port.ioctl(port.open_kvm(), 0xAE01, vm_type)
    assert vm_of(port, fd).vm_type == vm_type


@pytest.mark.parametrize("vm_type", [SNP, 5, 31, 32, 64, 1 << 32, 1 << 32 | SEV])
def test_types_that_this_host_has_not(vm_type: int) -> None:
    port = FakePort()
    assert answer(port, port.open_kvm(), 0xAE01, vm_type) == -errno.EINVAL


def test_device_attributes() -> None:
    port = FakePort()
    system = port.open_kvm()
    value = port.map(4096).hva

    def ask(request: int, group: int, attr: int, addr: int = value) -> int:
        port.write(port.args_hva, kvm.DeviceAttr(0, group, attr, addr).pack())
        return answer(port, system, request, port.args_hva)

    assert ask(0x4018AEE3, 1, 0) == 0
    assert port.read(value, 8) == bytes(8)  # only asked whether it is there
    assert ask(0x4018AEE2, 1, 0) == 0
    assert port.read(value, 8) == DEBUG_SWAP.to_bytes(8, "little")
    assert ask(0x4018AEE2, 1, 0, 0x10) == -errno.EFAULT
    for group, attr in ((1, 1), (1, 7), (0, 0), (2, 0)):
        assert ask(0x4018AEE2, group, attr) == ask(0x4018AEE3, group, attr) == -errno.ENXIO
    assert answer(port, system, 0x4018AEE2, 0x10) == -errno.EFAULT


def test_the_leaf_is_what_kvm_lets_a_guest_see() -> None:
    port = FakePort(cbit_pos=47)
    port.write(port.args_hva, kvm.pack_cpuid2([], room=32))
    port.ioctl(port.open_kvm(), 0xC008AE05, port.args_hva)
    entries = {each.function: each for each in kvm.unpack_cpuid2(port.read(port.args_hva, 8 + 32 * 40))}
    leaf = entries[0x8000001F]
    assert (leaf.eax, leaf.ebx) == (0b1010, 47)  # SEV, SEV-ES; no reduction, no VMPLs
    assert 0 < leaf.edx <= leaf.ecx  # the first ASID of plain SEV, the number of encrypted guests


@pytest.mark.parametrize(
    ("vm_type", "command", "result"),
    [
        (DEFAULT, sev.SevCmd.INIT, 0),
        (DEFAULT, sev.SevCmd.ES_INIT, 0),
        (DEFAULT, sev.SevCmd.INIT2, -errno.EINVAL),
        (SEV, sev.SevCmd.INIT, -errno.EINVAL),
        (SEV, sev.SevCmd.ES_INIT, -errno.EINVAL),
        (SEV, sev.SevCmd.INIT2, 0),
        (ES, sev.SevCmd.INIT, -errno.EINVAL),
        (ES, sev.SevCmd.ES_INIT, -errno.EINVAL),
        (ES, sev.SevCmd.INIT2, 0),
    ],
)
def test_which_init_for_which_type(vm_type: int, command: sev.SevCmd, result: int) -> None:
    port = FakePort()
    fd = port.create_vm(vm_type)
    data = sev.SevInit().pack() if command == sev.SevCmd.INIT2 else b""
    assert init(port, fd, command, data) == result
    vm = vm_of(port, fd)
    assert vm.active == (result == 0)
    if vm.active:
        assert vm.es == (vm_type == ES or command == sev.SevCmd.ES_INIT)
        assert vm.ghcb_version == {sev.SevCmd.INIT: 0, sev.SevCmd.ES_INIT: 1}.get(command, 2 if vm.es else 0)
        assert init(port, fd, command, data) == -errno.EINVAL  # once


@pytest.mark.parametrize(
    ("vm_type", "params", "result"),
    [
        (SEV, sev.SevInit(flags=1), -errno.EINVAL),
        (SEV, sev.SevInit(vmsa_features=DEBUG_SWAP), -errno.EINVAL),
        (SEV, sev.SevInit(ghcb_version=1), -errno.EINVAL),
        (ES, sev.SevInit(flags=1 << 31), -errno.EINVAL),
        (ES, sev.SevInit(vmsa_features=1), -errno.EINVAL),
        (ES, sev.SevInit(ghcb_version=3), -errno.EINVAL),
        (ES, sev.SevInit(vmsa_features=DEBUG_SWAP, ghcb_version=1), 0),
        (ES, sev.SevInit(ghcb_version=2), 0),
    ],
)
def test_the_parameters_of_init2(vm_type: int, params: sev.SevInit, result: int) -> None:
    port = FakePort()
    fd = port.create_vm(vm_type)
    assert init(port, fd, sev.SevCmd.INIT2, params.pack()) == result
    if result == 0:
        vm = vm_of(port, fd)
        assert (vm.vmsa_features, vm.ghcb_version) == (params.vmsa_features, params.ghcb_version)


def test_init2_without_its_struct_and_after_a_vcpu() -> None:
    port = FakePort()
    assert init(port, port.create_vm(SEV), sev.SevCmd.INIT2) == -errno.EFAULT
    fd = port.create_vm(SEV)
    port.create_vcpu(fd)
    assert init(port, fd, sev.SevCmd.INIT2, sev.SevInit().pack()) == -errno.EINVAL
    assert vm_of(port, fd).needs_init


@pytest.mark.parametrize("es", [False, True])
def test_a_guest_of_a_new_type_launches(es: bool) -> None:
    text = b"plain text 16 b\n" * 256
    guest = launch_guest({0: text}, es=es, policy=4 if es else 0, new_vm_type=True)
    port = guest.port
    assert port.read(guest.hva(0), 16) != text[:16]
    dbg = sev.pack_dbg(guest.hva(0), port.scratch_hva, 4096)
    port.sev_op(guest.vm_fd, sev.SevCmd.DBG_DECRYPT, dbg)
    assert port.read(port.scratch_hva, 4096) == text


def test_asids_run_out_with_ebusy() -> None:
    kernel = Kernel()
    port = FakePort(kernel)
    results = [init(port, port.create_vm(ES), sev.SevCmd.INIT2, sev.SevInit().pack()) for _ in range(100)]
    assert results == [0] * 99 + [-errno.EBUSY]  # 1..99 are SEV-ES's
