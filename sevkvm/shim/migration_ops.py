"""SEND_* and RECEIVE_* as the kernel hands them on (Linux arch/x86/kvm/svm/sev.c, v6.18); the firmware refuses."""

from __future__ import annotations

import errno
import struct
from typing import Final

from sevkvm.abi.x86 import PAGE_MASK, PAGE_NBYTES
from sevkvm.shim.sev_op import BLOB_MAX_NBYTES, Errno, SevOp, lengths_told

# struct kvm_sev_send_start: policy; PDH, platform and AMD certificates and session, each address and length
_SEND_START: Final = struct.Struct("<I4x" + 4 * "QI4x")
_PACKET: Final = struct.Struct("<" + 3 * "QI4x")  # struct kvm_sev_send_update_data: header, guest, packet
_RECEIVE_START: Final = struct.Struct("<II" + 2 * "QI4x")  # handle, policy; PDH certificate and session


def send_start(op: SevOp) -> None:
    """KVM_SEV_SEND_START: with session length 0 the length that it needs (and EIO)."""
    op.require_sev()
    policy, *blobs = _SEND_START.unpack(op.copy_from_user(op.data, _SEND_START.size))
    pdh, pdh_nbytes, platform, platform_nbytes, amd, amd_nbytes, session, session_nbytes = blobs
    if session_nbytes:
        if not pdh or not pdh_nbytes or not session or session_nbytes > BLOB_MAX_NBYTES:
            raise Errno(errno.EINVAL)
        for hva, nbytes in ((pdh, pdh_nbytes), (platform, platform_nbytes), (amd, amd_nbytes)):
            op.copy_blob(hva, nbytes)
    try:
        op.issue(lambda: op.firmware.send_start(op.vm.handle, session_nbytes))
    except Errno as refusal:
        # whatever the firmware said, the lengths in the struct are then the firmware's
        told = lengths_told(refusal)
        length = told[0] if told else session_nbytes
        op.copy_to_user(op.data, _SEND_START.pack(policy if not session_nbytes else 0, *blobs[:-1], length))
        raise


def send_update_data(op: SevOp) -> None:
    """KVM_SEV_SEND_UPDATE_DATA: with a length of 0 both lengths (and EIO)."""
    op.require_sev()
    header, header_nbytes, hva, nbytes, packet, packet_nbytes = _PACKET.unpack(
        op.copy_from_user(op.data, _PACKET.size)
    )
    if packet_nbytes and header_nbytes:
        if not packet or not hva or not nbytes or not header:
            raise Errno(errno.EINVAL)
        _require_one_page(hva, nbytes)
        op.pin(hva & ~PAGE_MASK, PAGE_NBYTES, write=False)
        op.issue(lambda: op.firmware.send_update_data(op.vm.handle, header_nbytes, packet_nbytes))
        return
    try:
        op.issue(lambda: op.firmware.send_update_data(op.vm.handle, 0, 0))
    except Errno as refusal:
        header_nbytes, packet_nbytes = lengths_told(refusal) or (0, 0)
        op.copy_to_user(op.data, _PACKET.pack(header, header_nbytes, hva, nbytes, packet, packet_nbytes))
        raise


def send_finish(op: SevOp) -> None:
    """KVM_SEV_SEND_FINISH."""
    op.require_sev()
    op.issue(lambda: op.firmware.send_finish(op.vm.handle))


def send_cancel(op: SevOp) -> None:
    """KVM_SEV_SEND_CANCEL."""
    op.require_sev()
    op.issue(lambda: op.firmware.send_cancel(op.vm.handle))


def receive_start(op: SevOp) -> None:
    """KVM_SEV_RECEIVE_START: goes to the descriptor that the command names."""
    op.require_sev()
    handle, policy, pdh, pdh_nbytes, session, session_nbytes = _RECEIVE_START.unpack(
        op.copy_from_user(op.data, _RECEIVE_START.size)
    )
    if not (pdh and pdh_nbytes and session and session_nbytes):
        raise Errno(errno.EINVAL)
    owner, keys = op.copy_blob(pdh, pdh_nbytes), op.copy_blob(session, session_nbytes)
    op.issue(lambda: op.firmware.receive_start(handle, policy, owner, keys), op.sev_fd)


def receive_update_data(op: SevOp) -> None:
    """KVM_SEV_RECEIVE_UPDATE_DATA: the one command for which a VM without SEV is EINVAL."""
    if not op.vm.active:
        raise Errno(errno.EINVAL)
    header, header_nbytes, hva, nbytes, packet, packet_nbytes = _PACKET.unpack(
        op.copy_from_user(op.data, _PACKET.size)
    )
    if not (header and header_nbytes and hva and nbytes and packet and packet_nbytes):
        raise Errno(errno.EINVAL)
    _require_one_page(hva, nbytes)
    op.copy_blob(header, header_nbytes)
    op.copy_blob(packet, packet_nbytes)
    op.pin(hva & ~PAGE_MASK, PAGE_NBYTES, write=True)
    op.issue(lambda: op.firmware.receive_update_data(op.vm.handle))


def receive_finish(op: SevOp) -> None:
    """KVM_SEV_RECEIVE_FINISH."""
    op.require_sev()
    op.issue(lambda: op.firmware.receive_finish(op.vm.handle))


def _require_one_page(hva: int, nbytes: int) -> None:
    if (hva & PAGE_MASK) + nbytes > PAGE_NBYTES:
        raise Errno(errno.EINVAL)
