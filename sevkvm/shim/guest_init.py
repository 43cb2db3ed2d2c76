"""KVM_SEV_INIT, _ES_INIT and _INIT2: how a VM becomes a SEV VM (Linux arch/x86/kvm/svm/sev.c, v6.18).

INIT and ES_INIT are for VMs of the default type; VMs of the types that say SEV (v6.10) take INIT2, and cannot run
a vCPU before it.
"""

from __future__ import annotations

import errno
from typing import Final

from sevkvm.abi.sev import INIT_NBYTES, PlatformState, SevInit
from sevkvm.shim.firmware import MAX_ASID, MIN_SEV_ASID
from sevkvm.shim.sev_op import Errno, SevOp
from sevkvm.shim.vm import VM_TYPE_DEFAULT, VM_TYPE_SEV, VM_TYPE_SEV_ES, VM_TYPE_SNP

DEBUG_SWAP: Final = 1 << 5  # SEV_FEATURES of the VMSA, AMD64 APM volume 2, appendix B
VMSA_FEATURES: Final = (
    DEBUG_SWAP  # what attribute KVM_X86_SEV_VMSA_FEATURES tells, and INIT2 takes for SEV-ES
)
_GHCB_MIN: Final = 1
_GHCB_MAX: Final = 2


def init(op: SevOp) -> None:
    """KVM_SEV_INIT: make the VM, which has no vCPU yet, a SEV VM."""
    _require_default_type(op)
    _init(op, SevInit(), es=False)


def es_init(op: SevOp) -> None:
    """KVM_SEV_ES_INIT: the same for SEV-ES."""
    if not op.firmware.es_enabled:
        raise Errno(errno.ENOTTY)
    _require_default_type(op)
    _init(op, SevInit(ghcb_version=_GHCB_MIN), es=True)


def init2(op: SevOp) -> None:
    """KVM_SEV_INIT2: the same for the VM types that say what they are."""
    if op.vm.active or op.vm.vm_type not in (VM_TYPE_SEV, VM_TYPE_SEV_ES, VM_TYPE_SNP):
        raise Errno(errno.EINVAL)
    params = SevInit.unpack(op.copy_from_user(op.data, INIT_NBYTES))
    op.record.args.update(vmsa_features=params.vmsa_features, ghcb_version=params.ghcb_version)
    _init(op, params, es=op.vm.vm_type != VM_TYPE_SEV)


def _require_default_type(op: SevOp) -> None:
    if op.vm.vm_type != VM_TYPE_DEFAULT:
        raise Errno(errno.EINVAL)


def _init(op: SevOp, params: SevInit, *, es: bool) -> None:
    vm = op.vm
    if vm.created_vcpus or params.flags:
        raise Errno(errno.EINVAL)
    if params.vmsa_features & ~(VMSA_FEATURES if es else 0):
        raise Errno(errno.EINVAL)
    if params.ghcb_version > _GHCB_MAX or (params.ghcb_version and not es):
        raise Errno(errno.EINVAL)
    if vm.active:
        raise Errno(errno.EINVAL)
    asid = _new_asid(op, es=es)
    if op.firmware.state == PlatformState.UNINIT:  # somebody has reset it: sev_platform_init
        op.reach_firmware(op.firmware.init)
    vm.asid = asid
    vm.active, vm.es = True, es
    vm.vmsa_features = params.vmsa_features
    vm.ghcb_version = params.ghcb_version or (_GHCB_MAX if es else 0)


def _new_asid(op: SevOp, *, es: bool) -> int:
    taken = {vm.asid for vm in op.kernel_vms} | {guest.asid for guest in op.firmware.guests.values()}
    wanted = range(1, MIN_SEV_ASID) if es else range(MIN_SEV_ASID, MAX_ASID + 1)
    asid = next((asid for asid in wanted if asid not in taken), None)
    if asid is None:
        raise Errno(errno.EBUSY)
    return asid
