"""LAUNCH_SECRET and GET_ATTESTATION_REPORT as the kernel carries them out (Linux arch/x86/kvm/svm/sev.c, v6.18)."""

from __future__ import annotations

import errno
import struct
from typing import Final

from sevkvm.shim.sev_op import BLOB_MAX_NBYTES, Errno, SevOp, lengths_told

_SECRET: Final = struct.Struct("<QI4xQI4xQI4x")  # struct kvm_sev_launch_secret: header, guest memory, packet
_REPORT: Final = struct.Struct("<16sQI4x")  # struct kvm_sev_attestation_report: nonce, address, length


def launch_secret(op: SevOp) -> None:
    """KVM_SEV_LAUNCH_SECRET: an owner's packet into guest memory, which must be physically contiguous."""
    op.require_sev()
    header, header_nbytes, hva, nbytes, packet, packet_nbytes = _SECRET.unpack(
        op.copy_from_user(op.data, _SECRET.size)
    )
    op.record.args.update(hva=hva, nbytes=nbytes)
    pinned = op.pin(hva, nbytes, write=True)
    if len(pinned) != 1:
        raise Errno(errno.EINVAL)
    data = op.copy_blob(packet, packet_nbytes)
    head = op.copy_blob(header, header_nbytes)
    sealed = op.issue(lambda: op.firmware.launch_secret(op.vm.handle, head, pinned[0].spa, nbytes, data))
    op.store(hva, sealed)


def get_attestation_report(op: SevOp) -> None:
    """KVM_SEV_GET_ATTESTATION_REPORT: signed by the PEK; with length 0 the length that it needs (and EIO)."""
    op.require_sev()
    nonce, hva, nbytes = _REPORT.unpack(op.copy_from_user(op.data, _REPORT.size))
    op.record.args.update(hva=hva, nbytes=nbytes)
    if hva and nbytes > BLOB_MAX_NBYTES:
        raise Errno(errno.EINVAL)
    room = nbytes if hva else 0
    try:
        report = op.issue(lambda: op.firmware.attestation(op.vm.handle, nonce, room))
    except Errno as refusal:
        # the length goes back only to a caller who asked for it
        if not nbytes and lengths_told(refusal):
            op.copy_to_user(op.data, _REPORT.pack(nonce, hva, *lengths_told(refusal)))
        raise
    op.copy_to_user(hva, report.ljust(nbytes, b"\0"))
    op.copy_to_user(op.data, _REPORT.pack(nonce, hva, len(report)))
