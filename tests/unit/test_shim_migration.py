"""SEND_* and RECEIVE_*: the kernel's errnos, then the firmware's refusals in its order; nothing is accepted."""

from __future__ import annotations

import errno
import struct

import pytest

from sevkvm.abi.policybits import POLICY_NOSEND
from sevkvm.abi.sev import SEV_RET_NO_FW_CALL, FwStatus, GuestState, SevCmd
from sevkvm.host.kvm import VmFd
from sevkvm.shim.fake_port import FakePort
from sevkvm.shim.port import FakeGuest, launch_guest
from tests.support.sev_ops import export_chain, vm_op
from tests.support.sev_owner import Owner

PAGE = 4096
PRESET = SEV_RET_NO_FW_CALL
EIO, EINVAL, EFAULT = errno.EIO, errno.EINVAL, errno.EFAULT
SEND_START = struct.Struct("<I4xQI4xQI4xQI4xQI4x")
PACKET = struct.Struct("<QI4xQI4xQI4x")
RECEIVE_START = struct.Struct("<IIQI4xQI4x")


@pytest.fixture
def guest() -> FakeGuest:
    return launch_guest({0: bytes(PAGE)})


def send_start(guest: FakeGuest, length: int = 128, **blobs: int) -> tuple[tuple[int, int], int]:
    """((errno, error), session length as it came back); a certificate's address may be given by name."""
    hva = guest.port.scratch_hva
    where = [blobs.get(name, hva) for name in ("pdh", "platform", "amd", "session")]
    data = SEND_START.pack(0, where[0], 2084, where[1], 6252, where[2], 1664, where[3], length)
    code, error, back = vm_op(guest.port, guest.vm_fd, SevCmd.SEND_START, data)
    return (code, error), SEND_START.unpack(back)[-1]


def test_send_start_tells_the_session_s_length(guest: FakeGuest) -> None:
    assert send_start(guest, 0) == ((EIO, FwStatus.INVALID_LEN), 128)
    assert send_start(guest, 127) == ((EIO, FwStatus.INVALID_LEN), 128)


@pytest.mark.parametrize("missing", ["pdh", "platform", "amd", "session"])
def test_send_start_wants_every_blob(guest: FakeGuest, missing: str) -> None:
    assert send_start(guest, **{missing: 0}) == ((EINVAL, PRESET), 128)
    if missing != "session":  # that one is only written to, and not before success
        assert send_start(guest, **{missing: 0x1000}) == ((EFAULT, PRESET), 128)


def test_send_start_refuses_in_order_and_then_has_no_peer(guest: FakeGuest) -> None:
    assert send_start(guest, 16385) == ((EINVAL, PRESET), 16385)
    launching = launch_guest({0: bytes(PAGE)}, policy=POLICY_NOSEND, finish=False)
    assert send_start(launching) == ((EIO, FwStatus.INVALID_GUEST_STATE), 128)
    immovable = launch_guest({0: bytes(PAGE)}, policy=POLICY_NOSEND)
    assert send_start(immovable) == ((EIO, FwStatus.POLICY_FAILURE), 128)
    assert send_start(guest) == ((EIO, FwStatus.UNSUPPORTED), 128)
    assert VmFd(guest.port, guest.vm_fd).sev_guest_status().state == GuestState.RUNNING


def test_a_guest_that_is_not_sent_has_nothing_to_finish_or_cancel(guest: FakeGuest) -> None:
    for command in (SevCmd.SEND_FINISH, SevCmd.SEND_CANCEL, SevCmd.RECEIVE_FINISH):
        refused = (EIO, FwStatus.INVALID_GUEST_STATE, b"")
        assert vm_op(guest.port, guest.vm_fd, command) == refused


def packet(guest: FakeGuest, command: SevCmd, **fields: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """((errno, error), (header length, packet length) as they came back)."""
    room = guest.port.scratch_hva
    values = {"header": room, "header_len": 52, "hva": guest.hva(0), "nbytes": PAGE, "packet": room}
    values |= {"packet_len": PAGE} | fields
    code, error, back = vm_op(guest.port, guest.vm_fd, command, PACKET.pack(*values.values()))
    told = PACKET.unpack(back)
    return (code, error), (told[1], told[5])


def test_send_update_data(guest: FakeGuest) -> None:
    def send(**fields: int) -> tuple[tuple[int, int], tuple[int, int]]:
        return packet(guest, SevCmd.SEND_UPDATE_DATA, **fields)

    for query in ({"header_len": 0}, {"packet_len": 0}):
        assert send(**query) == ((EIO, FwStatus.INVALID_LEN), (52, 0))
    for missing in ("header", "hva", "nbytes", "packet"):
        assert send(**{missing: 0})[0] == (EINVAL, PRESET)
    assert send(nbytes=PAGE + 16)[0] == (EINVAL, PRESET)
    assert send(hva=guest.hva(0) + 16)[0] == (EINVAL, PRESET)
    assert send(hva=0x1000)[0] == (errno.ENOMEM, PRESET)
    assert send(header_len=51) == ((EIO, FwStatus.INVALID_LEN), (51, PAGE))
    assert send() == ((EIO, FwStatus.INVALID_GUEST_STATE), (52, PAGE))


def test_receive_update_data(guest: FakeGuest) -> None:
    def receive(**fields: int) -> tuple[int, int]:
        return packet(guest, SevCmd.RECEIVE_UPDATE_DATA, **fields)[0]

    for missing in ("header", "header_len", "hva", "nbytes", "packet", "packet_len"):
        assert receive(**{missing: 0}) == (EINVAL, PRESET)
    assert receive(header=0x1000, hva=guest.hva(0) + 16) == (EINVAL, PRESET)
    assert receive(header=0x1000) == (EFAULT, PRESET)
    assert receive(packet_len=16385) == (EINVAL, PRESET)
    assert receive(hva=0x1000) == (errno.ENOMEM, PRESET)
    assert receive() == (EIO, FwStatus.INVALID_GUEST_STATE)


class Receiver:
    """A VM that a guest is to be received into, by a sender who knows the platform."""

    def __init__(self, policy: int = 0) -> None:
        self.port, self.policy = FakePort(), policy
        self.sev_fd, self.vm_fd = self.port.open_sev(), self.port.create_vm()
        self.port.sev_op(self.vm_fd, SevCmd.INIT)
        self.sender = Owner(export_chain(self.port, self.sev_fd)[0], policy)

    def start(self, handle: int = 0, policy: int | None = None, **fields: int) -> tuple[int, int]:
        sender = self.sender
        values = {"pdh": self.port.map(sender.cert).hva, "pdh_len": len(sender.cert)}
        values |= {"session": self.port.map(sender.session).hva, "session_len": len(sender.session)} | fields
        data = RECEIVE_START.pack(handle, self.policy if policy is None else policy, *values.values())
        code, error, back = vm_op(self.port, self.vm_fd, SevCmd.RECEIVE_START, data, self.sev_fd)
        assert back == data  # no handle
        return code, error


def test_receive_start_checks_the_session_and_then_has_no_peer() -> None:
    receiver = Receiver()
    for missing in ("pdh", "pdh_len", "session", "session_len"):
        assert receiver.start(**{missing: 0}) == (EINVAL, PRESET)
    assert receiver.start(pdh=0x1000) == (EFAULT, PRESET)
    assert receiver.start(session_len=127) == (EIO, FwStatus.INVALID_LEN)
    assert receiver.start(pdh_len=2083) == (EIO, FwStatus.INVALID_LEN)
    assert receiver.start(policy=8) == (EIO, FwStatus.BAD_MEASUREMENT)
    assert receiver.start(handle=7) == (EIO, FwStatus.INVALID_GUEST)
    assert receiver.start() == (EIO, FwStatus.UNSUPPORTED)
    assert not receiver.port.kernel.firmware.guests
    receiver.sev_fd = 99
    assert receiver.start() == (errno.EBADF, PRESET)


def test_receive_start_of_a_sev_es_guest_without_sev_es() -> None:
    receiver = Receiver(policy=4)
    receiver.port.kernel.firmware.es_enabled = False
    assert receiver.start() == (EIO, FwStatus.UNSUPPORTED)
    assert receiver.port.kernel.firmware.counts["RECEIVE_START"] == 1
