"""KVM_SEV_SNP_LAUNCH_* as the kernel carries them out (Linux arch/x86/kvm/svm/sev.c, v6.18).

All other commands are EPERM on a SNP VM; that is what a debugger meets, and why this is here. guest_memfd is not
modelled: every frame is taken for one that may be private.
"""

from __future__ import annotations

import errno
import struct
from typing import Final

from sevkvm.abi.policybits import SNP_POLICY_MUST_BE_ONE, SNP_POLICY_RESERVED
from sevkvm.abi.x86 import PAGE_NBYTES
from sevkvm.shim.sev_op import Errno, SevOp

_START: Final = struct.Struct("<Q16sH6x32x")  # struct kvm_sev_snp_launch_start: policy, gosvw, flags
_UPDATE: Final = struct.Struct("<QQQBxH4x32x")  # ..._update: gfn_start, uaddr, len, type, flags
_FINISH: Final = struct.Struct("<QQBBB32s3xH32x")  # ..._finish: ..., host_data, flags
_NORMAL, _ZERO, _UNMEASURED, _SECRETS, _CPUID = 1, 3, 4, 5, 6  # KVM_SEV_SNP_PAGE_TYPE_*
_VMSA: Final = 2
_ID_BLOCK_NBYTES: Final = 96
_ID_AUTH_NBYTES: Final = 4096


def launch_start(op: SevOp) -> None:
    """KVM_SEV_SNP_LAUNCH_START: once for a VM."""
    if not op.vm.snp:
        raise Errno(errno.ENOTTY)
    policy, _, flags = _START.unpack(op.copy_from_user(op.data, _START.size))
    op.record.args.update(policy=policy, sev_fd=op.sev_fd)
    if op.vm.snp_context or flags or policy & SNP_POLICY_RESERVED or not policy & SNP_POLICY_MUST_BE_ONE:
        raise Errno(errno.EINVAL)
    try:
        context = op.issue(op.firmware.snp_gctx_create, op.sev_fd)
    except Errno as refusal:
        raise Errno(errno.ENOTTY) from refusal
    op.vm.snp_context = context
    try:
        op.issue(lambda: op.firmware.snp_launch_start(context, policy), op.sev_fd)
        op.vm.sev_fd = op.sev_fd
        op.issue(lambda: op.firmware.snp_activate(context, op.vm.asid))
    except Errno:
        op.firmware.snp_guests.pop(context, None)
        op.vm.snp_context = 0
        raise


def launch_update(op: SevOp) -> None:
    """KVM_SEV_SNP_LAUNCH_UPDATE: pages of the caller's into the guest, measured one by one."""
    if not op.vm.snp or not op.vm.snp_context:
        raise Errno(errno.EINVAL)
    gfn, hva, nbytes, kind, flags = _UPDATE.unpack(op.copy_from_user(op.data, _UPDATE.size))
    op.record.args.update(gfn=gfn, hva=hva, nbytes=nbytes, type=kind)
    if nbytes % PAGE_NBYTES or flags or kind not in (_NORMAL, _ZERO, _UNMEASURED, _SECRETS, _CPUID):
        raise Errno(errno.EINVAL)
    op.error = 0
    try:
        for start in range(0, nbytes, PAGE_NBYTES):
            page = bytes(PAGE_NBYTES) if kind == _ZERO else op.copy_from_user(hva + start, PAGE_NBYTES)
            _update(op, kind, gfn + start // PAGE_NBYTES, page)
            op.record.pages += 1
    except Errno as failure:
        raise Errno(errno.EIO) from failure
    end_hva = hva if kind == _ZERO else hva + nbytes
    op.copy_to_user(op.data, _UPDATE.pack(gfn + nbytes // PAGE_NBYTES, end_hva, 0, kind, 0))


def _update(op: SevOp, kind: int, gfn: int, page: bytes) -> None:
    op.issue(lambda: op.firmware.snp_launch_update(op.vm.snp_context, kind, gfn, page), op.sev_fd)


def launch_finish(op: SevOp) -> None:
    """KVM_SEV_SNP_LAUNCH_FINISH: the vCPUs are measured and sealed, and the guest may run."""
    if not op.vm.snp:
        raise Errno(errno.ENOTTY)
    if not op.vm.snp_context:
        raise Errno(errno.EINVAL)
    fields = _FINISH.unpack(op.copy_from_user(op.data, _FINISH.size))
    id_block, id_auth, has_id_block, *_, flags = fields
    if flags:
        raise Errno(errno.EINVAL)
    for vcpu in op.vm.vcpus:
        if vcpu.guest_debug:
            raise Errno(errno.EINVAL)
        _update(op, _VMSA, 0xFFFFFFFFF, bytes(PAGE_NBYTES))
        vcpu.protected = True
    if has_id_block:
        op.copy_blob(id_block, _ID_BLOCK_NBYTES)
        op.copy_blob(id_auth, _ID_AUTH_NBYTES)
    op.issue(lambda: op.firmware.snp_launch_finish(op.vm.snp_context))
