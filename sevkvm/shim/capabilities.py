"""What programs ask before they make a SEV VM: capabilities, VM types, the attributes of ``/dev/kvm``.

Sources: Linux arch/x86/kvm/x86.c (kvm_vm_ioctl_check_extension, kvm_x86_dev_get_attr) and svm/sev.c
(sev_set_cpu_caps, sev_dev_get_attr), v6.18.
"""

from __future__ import annotations

import errno
from typing import Final

from sevkvm.abi import kvm as abi
from sevkvm.shim.firmware import Firmware
from sevkvm.shim.guest_init import VMSA_FEATURES
from sevkvm.shim.target import TargetMemory, read_exactly

# The capabilities whose answer depends on SEV; all others are the KVM's below.
CAPABILITIES: Final = (
    abi.KVM_CAP_VM_COPY_ENC_CONTEXT_FROM,
    abi.KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM,
    abi.KVM_CAP_VM_TYPES,
)


def sev_vm_types(firmware: Firmware) -> int:
    """The VM types that SEV adds, as a mask of ``1 << type``. SNP is not among them."""
    es = 1 << abi.KVM_X86_SEV_ES_VM if firmware.es_enabled else 0
    return 1 << abi.KVM_X86_SEV_VM | es


def is_sev_vm_type(firmware: Firmware, vm_type: int) -> bool:
    """May KVM_CREATE_VM have this argument because of SEV?"""
    return vm_type < 32 and bool(sev_vm_types(firmware) >> vm_type & 1)


def check_extension(firmware: Firmware, capability: int, below: int) -> int:
    """KVM_CHECK_EXTENSION of one of ``CAPABILITIES``; ``below`` is what a KVM without SEV answers (or -errno)."""
    if capability == abi.KVM_CAP_VM_TYPES:
        # a KVM that does not know the capability (before 6.8) answers 0, and has the default type all the same
        return max(below, 0) | 1 << abi.KVM_X86_DEFAULT_VM | sev_vm_types(firmware)
    return 1


def is_sev_attribute(attribute: abi.DeviceAttr) -> bool:
    """Is it one that only a KVM with SEV knows?"""
    return attribute.group == abi.KVM_X86_GRP_SEV


def device_attribute(memory: TargetMemory, request: int, attribute: abi.DeviceAttr) -> int:
    """KVM_HAS_DEVICE_ATTR or _GET_DEVICE_ATTR of a SEV attribute on ``/dev/kvm``: 0 or -errno."""
    if attribute.attr != abi.KVM_X86_SEV_VMSA_FEATURES:
        return -errno.ENXIO
    value = VMSA_FEATURES.to_bytes(8, "little")
    if request == abi.KVM_GET_DEVICE_ATTR and memory.write(attribute.addr, value) < len(value):
        return -errno.EFAULT
    return 0


def read_attribute(memory: TargetMemory, hva: int) -> abi.DeviceAttr | None:
    """The struct that both requests take; None if it cannot be read (EFAULT)."""
    raw = read_exactly(memory, hva, abi.DEVICE_ATTR_NBYTES)
    return None if raw is None else abi.DeviceAttr.unpack(raw)
