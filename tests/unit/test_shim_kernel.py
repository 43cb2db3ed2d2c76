"""The pretend kvm_amd: errno by errno, what comes back in the struct, partial effects."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sevkvm import errors
from sevkvm.abi import kvm, sev
from sevkvm.abi.policybits import POLICY_ES
from sevkvm.abi.sev import SEV_RET_NO_FW_CALL, FwStatus, SevCmd
from sevkvm.shim.port import FakeGuest, FakePort, launch_guest

PAGE = 4096
RAM = os.urandom(4 * PAGE)
PRESET = SEV_RET_NO_FW_CALL


def outcome(port: FakePort, command: Callable[[], object]) -> tuple[int, int]:
    """(errno, error field) of a command."""
    code = 0
    try:
        command()
    except errors.IoctlError as error:
        code = error.errno or 0
    return code, port.sev_error()


@pytest.fixture
def guest() -> FakeGuest:
    return launch_guest({0: RAM})


def dbg(guest: FakeGuest, command: SevCmd, src: int, dst: int, nbytes: int, **more: int) -> tuple[int, int]:
    data = sev.pack_dbg(src, dst, nbytes)
    return outcome(guest.port, lambda: guest.port.sev_op(guest.vm_fd, command, data, **more))


def decrypt(guest: FakeGuest, src: int, dst: int, nbytes: int, **more: int) -> tuple[int, int]:
    return dbg(guest, SevCmd.DBG_DECRYPT, src, dst, nbytes, **more)


def encrypt(guest: FakeGuest, src: int, dst: int, nbytes: int, **more: int) -> tuple[int, int]:
    return dbg(guest, SevCmd.DBG_ENCRYPT, src, dst, nbytes, **more)


def test_unknown_commands_leave_the_struct_alone(guest: FakeGuest) -> None:
    port = guest.port
    for command in (23, 99, 104, 5000, SevCmd.CERT_EXPORT):
        assert outcome(port, lambda c=command: port.sev_op(guest.vm_fd, c, error=77)) == (errno.EINVAL, 77)


def test_a_null_argument_is_the_probe_and_a_bad_one_faults(guest: FakeGuest) -> None:
    assert guest.port.ioctl(guest.vm_fd, kvm.KVM_MEMORY_ENCRYPT_OP, 0) == 0
    with pytest.raises(errors.IoctlError) as fault:
        guest.port.ioctl(guest.vm_fd, kvm.KVM_MEMORY_ENCRYPT_OP, 0x1000)
    assert fault.value.errno == errno.EFAULT


def test_the_struct_that_cannot_be_copied_back_faults_after_the_effect(guest: FakeGuest) -> None:
    port = guest.port
    data = port.map(sev.pack_dbg(guest.hva(0), port.scratch_hva, 16))
    cmd = sev.KvmSevCmd(SevCmd.DBG_DECRYPT, data=data.hva).pack()
    frozen = port.map(cmd, writable=False)
    with pytest.raises(errors.IoctlError) as fault:
        port.ioctl(guest.vm_fd, kvm.KVM_MEMORY_ENCRYPT_OP, frozen.hva)
    assert fault.value.errno == errno.EFAULT
    assert port.read(port.scratch_hva, 16) == RAM[:16]


@pytest.mark.parametrize("command", [c for c in SevCmd if c not in (0, 1, 13, 14, 10, 19, 22, 100, 101, 102)])
def test_every_known_command_is_enotty_on_a_plain_vm(command: SevCmd) -> None:
    plain = launch_guest({0: RAM}, policy=None)
    port = plain.port
    assert outcome(port, lambda: port.sev_op(plain.vm_fd, command, bytes(48))) == (errno.ENOTTY, PRESET)


def test_receive_update_data_is_the_exception() -> None:
    plain = launch_guest({0: RAM}, policy=None)
    port = plain.port
    data = bytes(48)
    received = outcome(port, lambda: port.sev_op(plain.vm_fd, SevCmd.RECEIVE_UPDATE_DATA, data))
    assert received == (errno.EINVAL, PRESET)


def test_the_error_field_goes_in_and_out(guest: FakeGuest) -> None:
    scratch = guest.port.scratch_hva
    assert decrypt(guest, guest.hva(0), scratch, 0, error=1234) == (errno.EINVAL, 1234)
    assert decrypt(guest, guest.hva(0), 0x1000, 16, error=1234) == (errno.ENOMEM, 1234)
    assert decrypt(guest, guest.hva(0), scratch, 16, error=1234) == (0, 0)
    nodbg = launch_guest({0: RAM}, policy=1)
    refused = decrypt(nodbg, nodbg.hva(0), nodbg.port.scratch_hva, 16, error=1234)
    assert refused == (errno.EIO, FwStatus.POLICY_FAILURE)


@pytest.mark.parametrize(
    ("src", "dst", "nbytes"),
    [
        (0, 1 << 40, 16),
        (1 << 40, 0, 16),
        (1 << 40, 1 << 40, 0),
        ((1 << 64) - 16, 1, 32),
        (1, (1 << 64) - 16, 32),
    ],
)
def test_debug_arguments_that_are_einval(guest: FakeGuest, src: int, dst: int, nbytes: int) -> None:
    assert decrypt(guest, src, dst, nbytes) == (errno.EINVAL, PRESET)
    assert encrypt(guest, src, dst, nbytes) == (errno.EINVAL, PRESET)


def test_pin_failures_are_enomem_and_come_before_the_firmware(guest: FakeGuest) -> None:
    port = guest.port
    frozen = port.map(PAGE, writable=False)
    nodbg = launch_guest({0: RAM}, policy=1)
    assert decrypt(guest, guest.hva(0), frozen.hva, 16) == (errno.ENOMEM, PRESET)
    assert decrypt(guest, frozen.hva, port.scratch_hva, 16) == (0, 0)  # only the destination is written
    assert encrypt(guest, frozen.hva, guest.hva(0), 16) == (0, 0)
    assert encrypt(guest, 0x1000, guest.hva(0), 16) == (errno.ENOMEM, PRESET)
    assert decrypt(nodbg, nodbg.hva(0), 0x1000, 16) == (errno.ENOMEM, PRESET)


def test_a_failure_in_the_middle_leaves_what_was_done(guest: FakeGuest) -> None:
    port = guest.port
    end = port.map(PAGE)
    assert decrypt(guest, guest.hva(0), end.hva, 3 * PAGE) == (errno.ENOMEM, 0)
    assert port.read(end.hva, PAGE) == RAM[:PAGE]
    assert port.kernel.firmware.counts["DBG_DECRYPT"] == 1
    end = port.map(PAGE)
    assert decrypt(guest, guest.hva(0) + 64, end.hva, 2 * PAGE) == (errno.ENOMEM, 0)  # page by page
    assert port.read(end.hva, PAGE) == RAM[64 : PAGE + 64]


def test_the_sev_descriptor_is_a_number(guest: FakeGuest) -> None:
    port, scratch = guest.port, guest.port.scratch_hva
    node = port.files.pop(guest.sev_fd)
    assert decrypt(guest, guest.hva(0), scratch, 16) == (errno.EBADF, PRESET)
    port.files[guest.sev_fd] = port.files[guest.vm_fd]
    assert decrypt(guest, guest.hva(0), scratch, 16) == (errno.EBADF, PRESET)
    port.files[guest.sev_fd] = node
    assert decrypt(guest, guest.hva(0), scratch, 16, sev_fd=9999) == (0, 0)


def test_before_launch_start_the_descriptor_is_stdin() -> None:
    port = FakePort()
    vm = port.create_vm()
    port.sev_op(vm, SevCmd.INIT)
    assert outcome(port, lambda: port.sev_op(vm, SevCmd.GUEST_STATUS, bytes(12))) == (errno.EBADF, PRESET)
    start = sev.LaunchStart().pack()
    assert outcome(port, lambda: port.sev_op(vm, SevCmd.LAUNCH_START, start, sev_fd=55))[0] == errno.EBADF
    read_only = port.open_sev(writable=False)
    port.sev_op(vm, SevCmd.LAUNCH_START, start, sev_fd=read_only)
    assert port.sev_op(vm, SevCmd.GUEST_STATUS, bytes(12)) == sev.GuestStatus(1, 0, 1).pack()


def test_init_once_and_before_any_vcpu() -> None:
    port = FakePort()
    first, second = port.create_vm(), port.create_vm()
    port.sev_op(first, SevCmd.INIT)
    assert outcome(port, lambda: port.sev_op(first, SevCmd.INIT)) == (errno.EINVAL, PRESET)
    port.create_vcpu(second)
    assert outcome(port, lambda: port.sev_op(second, SevCmd.ES_INIT)) == (errno.EINVAL, PRESET)
    assert outcome(port, lambda: port.sev_op(second, SevCmd.INIT2, bytes(56))) == (errno.EINVAL, PRESET)
    port.kernel.firmware.es_enabled = False
    assert outcome(port, lambda: port.sev_op(second, SevCmd.ES_INIT)) == (errno.ENOTTY, PRESET)


def test_an_es_policy_needs_es_init() -> None:
    port = FakePort()
    vm, node = port.create_vm(), port.open_sev()
    port.sev_op(vm, SevCmd.INIT)
    start = sev.LaunchStart(policy=POLICY_ES).pack()
    refused = outcome(port, lambda: port.sev_op(vm, SevCmd.LAUNCH_START, start, sev_fd=node))
    assert refused == (errno.EIO, FwStatus.INVALID_ASID)
    assert not port.kernel.firmware.guests


def test_launch_update_pins_everything_before_it_encrypts_anything() -> None:
    port = FakePort()
    guest = launch_guest({0: RAM}, finish=False, port=port)
    region = port.map(b"A" * PAGE)
    data = sev.pack_uaddr_len(region.hva, 2 * PAGE)
    refused = outcome(port, lambda: port.sev_op(guest.vm_fd, SevCmd.LAUNCH_UPDATE_DATA, data))
    assert refused == (errno.ENOMEM, PRESET)
    assert port.read(region.hva, PAGE) == b"A" * PAGE
    for empty in (sev.pack_uaddr_len(region.hva, 0), sev.pack_uaddr_len((1 << 64) - 16, 32)):
        refused = outcome(port, lambda d=empty: port.sev_op(guest.vm_fd, SevCmd.LAUNCH_UPDATE_DATA, d))
        assert refused == (errno.EINVAL, PRESET)
    odd = sev.pack_uaddr_len(region.hva + 8, 16)
    refused = outcome(port, lambda: port.sev_op(guest.vm_fd, SevCmd.LAUNCH_UPDATE_DATA, odd))
    assert refused == (errno.EIO, FwStatus.INVALID_ADDRESS)


def test_measure_tells_its_length_only_to_who_asks() -> None:
    port = FakePort()
    guest = launch_guest({0: RAM}, finish=False, port=port)

    def measure(hva: int, nbytes: int) -> tuple[tuple[int, int], int]:
        where = port.args_hva + 64
        data = sev.pack_uaddr_len(hva, nbytes)
        result = outcome(port, lambda: port.sev_op(guest.vm_fd, SevCmd.LAUNCH_MEASURE, data))
        return result, sev.unpack_uaddr_len(port.read(where, 16))[1]

    scratch = port.scratch_hva
    assert measure(0, 0) == ((errno.EIO, FwStatus.INVALID_LEN), 48)
    assert measure(scratch, 47) == ((errno.EIO, FwStatus.INVALID_LEN), 47)
    assert measure(scratch, 16 * 1024 + 1) == ((errno.EINVAL, PRESET), 16 * 1024 + 1)
    assert measure(scratch, 64) == ((0, 0), 64)  # the firmware leaves it
    assert port.read(scratch, 48) != bytes(48)
    assert port.read(scratch + 48, 16) == bytes(16)
    assert measure(scratch, 48) == ((errno.EIO, FwStatus.INVALID_GUEST_STATE), 48)


def test_regions_are_registered_and_unregistered_as_they_were() -> None:
    port = FakePort()
    guest = launch_guest({0: RAM}, port=port)

    def region(request: int, hva: int, nbytes: int) -> int:
        port.write(port.args_hva, kvm.pack_enc_region(hva, nbytes))
        try:
            return port.ioctl(guest.vm_fd, request, port.args_hva)
        except errors.IoctlError as error:
            return error.errno or 0

    reg, unreg = kvm.KVM_MEMORY_ENCRYPT_REG_REGION, kvm.KVM_MEMORY_ENCRYPT_UNREG_REGION
    hva = guest.hva(0)
    assert region(reg, hva, PAGE) == 0
    assert region(reg, hva, 64 * PAGE) == errno.ENOMEM
    assert region(reg, hva, 0) == errno.EINVAL
    assert region(unreg, hva, 2 * PAGE) == errno.EINVAL
    assert region(unreg, hva, PAGE) == 0
    assert region(unreg, hva, PAGE) == errno.EINVAL


def test_a_destroyed_vm_gives_its_handle_back(guest: FakeGuest) -> None:
    kernel = guest.port.kernel
    (vm,) = kernel.vms
    kernel.destroy_vm(vm)
    assert not kernel.firmware.guests
    with pytest.raises(errors.IoctlError) as dead:
        guest.port.ioctl(guest.vm_fd, kvm.KVM_MEMORY_ENCRYPT_OP, 0)
    assert dead.value.errno == errno.EIO
    assert (
        launch_guest({0: RAM}, port=guest.port).port.sev_op(guest.vm_fd + 3, SevCmd.GUEST_STATUS, bytes(12))
        == sev.GuestStatus(1, 0, 3).pack()
    )


def test_the_log_tells_each_command(guest: FakeGuest) -> None:
    decrypt(guest, guest.hva(0), guest.port.scratch_hva, 2 * PAGE)
    decrypt(guest, guest.hva(0), 0x1000, 16)
    log = guest.port.kernel.log
    assert log.names() == [
        *("INIT", "LAUNCH_START", "LAUNCH_UPDATE_DATA", "LAUNCH_MEASURE", "LAUNCH_FINISH"),
        *("DBG_DECRYPT", "DBG_DECRYPT"),
    ]
    good, bad = list(log.records)[-2:]
    assert (good.pages, good.errno_name, good.status_name, good.vm) == (2, "", "SUCCESS", 1)
    assert good.args == {"src": guest.hva(0), "dst": guest.port.scratch_hva, "nbytes": 2 * PAGE}
    assert (bad.pages, bad.errno_name, bad.status_name) == (0, "ENOMEM", "")


offsets = st.one_of(st.integers(0, 3 * PAGE), st.integers(0, 600).map(lambda block: 16 * block))
lengths = st.one_of(st.integers(1, 2 * PAGE), st.integers(1, 512).map(lambda block: 16 * block))


@settings(max_examples=60, deadline=None)
@given(offsets, offsets, lengths)
def test_decrypt_is_a_copy_through_the_cipher(src: int, dst: int, nbytes: int) -> None:
    guest = launch_guest({0: RAM + RAM})
    port = guest.port
    port.write(port.scratch_hva, b"\xee" * 8 * PAGE)
    assert decrypt(guest, guest.hva(0) + src, port.scratch_hva + dst, nbytes) == (0, 0)
    wanted = bytearray(b"\xee" * 8 * PAGE)
    wanted[dst : dst + nbytes] = (RAM + RAM)[src : src + nbytes]
    assert port.read(port.scratch_hva, 8 * PAGE) == wanted


@settings(max_examples=60, deadline=None)
@given(offsets, offsets, lengths)
def test_encrypt_is_a_copy_through_the_cipher(src: int, dst: int, nbytes: int) -> None:
    guest = launch_guest({0: RAM + RAM})
    port = guest.port
    new = os.urandom(8 * PAGE)
    port.write(port.scratch_hva, new)
    assert encrypt(guest, port.scratch_hva + src, guest.hva(0) + dst, nbytes) == (0, 0)
    wanted = bytearray(RAM + RAM)
    wanted[dst : dst + nbytes] = new[src : src + nbytes]
    assert decrypt(guest, guest.hva(0), port.scratch_hva, 8 * PAGE) == (0, 0)
    assert port.read(port.scratch_hva, 8 * PAGE) == wanted


@given(offsets, offsets, lengths)
@settings(max_examples=30, deadline=None)
def test_one_firmware_command_for_each_piece_inside_two_pages(src: int, dst: int, nbytes: int) -> None:
    guest = launch_guest({0: RAM + RAM})
    decrypt(guest, guest.hva(0) + src, guest.port.scratch_hva + dst, nbytes)
    borders = {(n * PAGE - offset) for n in range(9) for offset in (src, dst)}
    pieces = 1 + len([border for border in borders if 0 < border < nbytes])
    assert guest.port.kernel.firmware.counts["DBG_DECRYPT"] == pieces
