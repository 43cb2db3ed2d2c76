"""LAUNCH_* and GUEST_STATUS as the kernel carries them out (Linux arch/x86/kvm/svm/sev.c, v6.18)."""

from __future__ import annotations

import errno
from typing import Final

from sevkvm.abi.sev import (
    GUEST_STATUS_NBYTES,
    LAUNCH_START_NBYTES,
    LaunchStart,
    pack_uaddr_len,
    unpack_uaddr_len,
)
from sevkvm.shim.sev_op import BLOB_MAX_NBYTES, Errno, SevOp, forget_guest, lengths_told, npages
from sevkvm.shim.target import Backing, CallerGone

_VMSA_NBYTES: Final = 4096
_UADDR_LEN_NBYTES: Final = 16


def launch_start(op: SevOp) -> None:
    """KVM_SEV_LAUNCH_START: a firmware guest and its key; remembers the number of the descriptor that it names."""
    op.require_sev()
    params = LaunchStart.unpack(op.copy_from_user(op.data, LAUNCH_START_NBYTES))
    op.record.args.update(policy=params.policy, sev_fd=op.sev_fd)
    owner = op.copy_blob(params.dh_uaddr, params.dh_nbytes) if params.dh_uaddr else None
    session = op.copy_blob(params.session_uaddr, params.session_nbytes) if params.session_uaddr else b""
    handle = op.issue(
        lambda: op.firmware.launch_start(params.handle, params.policy, owner, session), op.sev_fd
    )
    try:
        op.reach_firmware(lambda: op.firmware.activate(handle, op.vm.asid))
        op.record.args["handle"] = handle
        op.copy_to_user(op.data, handle.to_bytes(4, "little"))
    except (Errno, CallerGone):  # no VM would know the guest
        forget_guest(op.firmware, handle)
        raise
    op.vm.handle, op.vm.sev_fd = handle, op.sev_fd


def launch_update_data(op: SevOp) -> None:
    """KVM_SEV_LAUNCH_UPDATE_DATA: encrypt memory in place, one command a physically contiguous run."""
    op.require_sev()
    hva, nbytes = unpack_uaddr_len(op.copy_from_user(op.data, _UADDR_LEN_NBYTES))
    op.record.args.update(hva=hva, nbytes=nbytes)
    for run in op.pin(hva, nbytes, write=True):
        _update_run(op, run)


def _update_run(op: SevOp, run: Backing) -> None:
    guest = op.issue(
        lambda: op.firmware.launch_update("LAUNCH_UPDATE_DATA", op.vm.handle, run.spa, run.nbytes)
    )
    for start in range(0, run.nbytes, len(op.room)):
        data = op.load(run.hva + start, min(len(op.room), run.nbytes - start))
        guest.seal(run.spa + start, data)
        op.store(run.hva + start, data)
    op.record.pages += npages(run.hva, run.nbytes)


def launch_update_vmsa(op: SevOp) -> None:
    """KVM_SEV_LAUNCH_UPDATE_VMSA: seal the registers of every vCPU.

    The real VMSA is a page inside the kernel that no other process sees; what is measured in its place is a
    page of zeros for each vCPU.
    """
    op.require_sev(es=True)
    if op.generation == "new" and op.vm.vcpus_in_creation:
        raise Errno(errno.EBUSY)
    for vcpu in op.vm.vcpus:
        if vcpu.guest_debug:
            raise Errno(errno.EINVAL)
        guest = op.issue(
            lambda: op.firmware.launch_update("LAUNCH_UPDATE_VMSA", op.vm.handle, 0, _VMSA_NBYTES)
        )
        guest.seal(0, bytearray(_VMSA_NBYTES))
        vcpu.protected = True


def launch_measure(op: SevOp) -> None:
    """KVM_SEV_LAUNCH_MEASURE: the measurement; with length 0 the length that it needs (and EIO)."""
    op.require_sev()
    hva, nbytes = unpack_uaddr_len(op.copy_from_user(op.data, _UADDR_LEN_NBYTES))
    op.record.args.update(hva=hva, nbytes=nbytes)
    if hva and nbytes > BLOB_MAX_NBYTES:
        raise Errno(errno.EINVAL)
    room = nbytes if hva else 0
    try:
        blob = op.issue(lambda: op.firmware.launch_measure(op.vm.handle, room))
    except Errno as refusal:
        # the length goes back only to a caller who asked for it
        if not nbytes and lengths_told(refusal):
            op.copy_to_user(op.data, pack_uaddr_len(hva, *lengths_told(refusal)))
        raise
    # as much as the caller has room for; the firmware leaves the length as it was
    op.copy_to_user(hva, blob.ljust(nbytes, b"\0"))
    op.copy_to_user(op.data, pack_uaddr_len(hva, nbytes))


def launch_finish(op: SevOp) -> None:
    """KVM_SEV_LAUNCH_FINISH: the guest may run."""
    op.require_sev()
    op.issue(lambda: op.firmware.launch_finish(op.vm.handle))


def guest_status(op: SevOp) -> None:
    """KVM_SEV_GUEST_STATUS."""
    op.require_sev()
    status = op.issue(lambda: op.firmware.guest_status(op.vm.handle))
    data = status.pack()
    assert len(data) == GUEST_STATUS_NBYTES
    op.copy_to_user(op.data, data)
