"""One encryption context for two VMs: mirrors, and moving within a host (Linux arch/x86/kvm/svm/sev.c, v6.18).

Source and destination may belong to different processes: nobody compares the source's address space. The *number*
of the ``/dev/sev`` descriptor goes along to a mirror, and is looked up in the table of whoever calls; a moved
context leaves it behind, so that the destination's is 0.
"""

from __future__ import annotations

import errno
from typing import Final

from sevkvm.abi.sev import SevCmd
from sevkvm.shim.sev_op import Errno
from sevkvm.shim.vm import Vm

# is_cmd_allowed_from_mirror; the last three since 5.15
ALLOWED_ON_MIRRORS: Final = frozenset(
    (SevCmd.LAUNCH_UPDATE_VMSA, SevCmd.GUEST_STATUS, SevCmd.DBG_DECRYPT, SevCmd.DBG_ENCRYPT)
)


def copy_context(vm: Vm, source: Vm) -> None:
    """KVM_CAP_VM_COPY_ENC_CONTEXT_FROM: make ``vm``, which is nothing yet, a mirror of ``source``; EINVAL."""
    if vm is source or vm.active or vm.created_vcpus or not source.active or source.owner:
        raise Errno(errno.EINVAL)
    vm.owner = source
    source.mirrors.append(vm)
    vm.active, vm.es = True, source.es
    vm.asid, vm.handle, vm.sev_fd = source.asid, source.handle, source.sev_fd


def move_context(vm: Vm, source: Vm) -> None:
    """KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM: ``source`` is dead from now on; EINVAL, or EBUSY while a vCPU is made."""
    if vm is source or vm.vm_type != source.vm_type or vm.active or not source.active:
        raise Errno(errno.EINVAL)
    if vm.vcpus_in_creation or source.vcpus_in_creation:
        raise Errno(errno.EBUSY)
    if source.es and (len(vm.vcpus) != len(source.vcpus) or not all(v.protected for v in source.vcpus)):
        raise Errno(errno.EINVAL)
    vm.active, vm.es, vm.asid, vm.handle = True, source.es, source.asid, source.handle
    vm.pages_locked, vm.regions = source.pages_locked, source.regions
    _take_relatives(vm, source)
    if vm.es:
        for new, old in zip(vm.vcpus, source.vcpus, strict=True):
            new.protected, old.protected = True, False
    source.active, source.es, source.asid, source.handle = False, False, 0, 0
    source.pages_locked, source.regions = 0, []
    source.dead = True


def _take_relatives(vm: Vm, source: Vm) -> None:
    vm.mirrors, source.mirrors = source.mirrors, []
    for mirror in vm.mirrors:
        mirror.owner = vm
    vm.owner, source.owner = source.owner, None
    if vm.owner:
        vm.owner.mirrors.remove(source)
        vm.owner.mirrors.append(vm)
