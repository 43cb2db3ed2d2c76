"""As much of KVM as a tiny VMM and a debugger need, for doors that have no real one below them.

Registers are kept, never executed: KVM_RUN of any vCPU is the door's affair (it waits). The answers follow Linux
virt/kvm/kvm_main.c and arch/x86/kvm/x86.c (v6.18).
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from sevkvm.abi import kvm as abi
from sevkvm.shim import capabilities
from sevkvm.shim.cpuid import supported_cpuid
from sevkvm.shim.kernel import CONTEXT_CAPABILITIES, SEV_REQUESTS, Kernel
from sevkvm.shim.mini_vcpu import VcpuFile, vcpu_ioctl
from sevkvm.shim.sev_op import Errno
from sevkvm.shim.target import Caller, TargetMemory
from sevkvm.shim.vcpu_state import get, put_cpuid
from sevkvm.shim.vm import Vm

VCPU_MMAP_NBYTES: Final = 3 * 4096  # kvm_run, port I/O data, coalesced MMIO ring
_MAX_VCPUS: Final = 64
_MAX_SLOTS: Final = 509
_CAPABILITIES: Final = {
    3: 1,  # KVM_CAP_USER_MEMORY
    7: 1,  # KVM_CAP_EXT_CPUID
    9: _MAX_VCPUS,  # KVM_CAP_NR_VCPUS
    10: _MAX_SLOTS,  # KVM_CAP_NR_MEMSLOTS
    66: _MAX_VCPUS,  # KVM_CAP_MAX_VCPUS
    81: 1,  # KVM_CAP_READONLY_MEM
    136: 1,  # KVM_CAP_IMMEDIATE_EXIT
    abi.KVM_CAP_VM_TYPES: 1 << abi.KVM_X86_DEFAULT_VM,
}
_REGION: Final = struct.Struct("<IIQQQ")


@dataclass(eq=False)
class SystemFile:
    """An open ``/dev/kvm``."""


@dataclass(eq=False)
class VmFile:
    """A VM with its slots (number to gpa, nbytes, hva) and vCPUs (by id)."""

    vm: Vm
    slots: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    vcpus: dict[int, VcpuFile] = field(default_factory=dict)


KvmFile = SystemFile | VmFile | VcpuFile
FileAt = Callable[[Caller, int], object]
Answer = int | VmFile | VcpuFile  # a file: the door gives the caller a descriptor for it


class MiniKvm:
    """Answers ioctls on the files above; ``cbit_pos`` is what CPUID tells of the C-bit.

    ``file_at`` finds what is behind a descriptor of the caller's.
    """

    def __init__(self, kernel: Kernel, cbit_pos: int, file_at: FileAt) -> None:
        self.kernel = kernel
        self.file_at = file_at
        self.cbit_pos = cbit_pos

    def ioctl(self, file: KvmFile, caller: Caller, request: int, argument: int) -> Answer:
        """A result >= 0, a new file, or -errno. KVM_RUN is not answered here: ENOTTY."""
        try:
            match file:
                case SystemFile():
                    return self._system(caller, request, argument)
                case VmFile():
                    return self._vm(file, caller, request, argument)
                case VcpuFile():
                    if self.kernel.refuses(file.vm, caller):
                        raise Errno(errno.EIO)
                    return vcpu_ioctl(file, caller.memory, request, argument)
        except Errno as error:
            return -error.errno

    def _system(self, caller: Caller, request: int, argument: int) -> Answer:
        match request:
            case abi.KVM_GET_API_VERSION:
                return abi.KVM_API_VERSION
            case abi.KVM_CHECK_EXTENSION:
                return self._check_extension(argument)
            case abi.KVM_GET_VCPU_MMAP_SIZE:
                return VCPU_MMAP_NBYTES
            case abi.KVM_CREATE_VM:
                if argument and not capabilities.is_sev_vm_type(self.kernel.firmware, argument):
                    raise Errno(errno.EINVAL)
                return VmFile(self.kernel.create_vm(caller.mm, argument))
            case abi.KVM_HAS_DEVICE_ATTR | abi.KVM_GET_DEVICE_ATTR:
                return _device_attribute(caller.memory, request, argument)
            case abi.KVM_GET_SUPPORTED_CPUID:
                put_cpuid(caller.memory, argument, supported_cpuid(self.cbit_pos))
                return 0
        raise Errno(errno.ENOTTY)

    def _check_extension(self, capability: int) -> int:
        below = _CAPABILITIES.get(capability, 0)
        if capability not in capabilities.CAPABILITIES:
            return below
        return capabilities.check_extension(self.kernel.firmware, capability, below)

    def _vm(self, file: VmFile, caller: Caller, request: int, argument: int) -> Answer:
        if self.kernel.refuses(file.vm, caller):
            raise Errno(errno.EIO)
        if request in SEV_REQUESTS:
            return self.kernel.vm_ioctl(file.vm, caller, request, argument)
        match request:
            case abi.KVM_CHECK_EXTENSION:
                return self._check_extension(argument)
            case abi.KVM_CREATE_VCPU:
                return _create_vcpu(file, argument)
            case abi.KVM_ENABLE_CAP:
                return self._enable_cap(file.vm, caller, argument)
            case abi.KVM_CREATE_IRQCHIP:
                return 0  # nothing runs, so nothing is ever delivered
            case abi.KVM_SET_USER_MEMORY_REGION:
                _set_region(file, get(caller.memory, argument, _REGION.size))
                return 0
        raise Errno(errno.ENOTTY)

    def _enable_cap(self, vm: Vm, caller: Caller, argument: int) -> int:
        def vm_at(fd: int) -> Vm | None:
            found = self.file_at(caller, fd)
            return found.vm if isinstance(found, VmFile) else None

        enable = abi.EnableCap.unpack(get(caller.memory, argument, abi.ENABLE_CAP_NBYTES))
        if enable.capability not in CONTEXT_CAPABILITIES:
            raise Errno(errno.EINVAL)
        return self.kernel.enable_cap(vm, caller, enable, vm_at)


def _device_attribute(memory: TargetMemory, request: int, hva: int) -> int:
    attribute = capabilities.read_attribute(memory, hva)
    if attribute is None:
        raise Errno(errno.EFAULT)
    if not capabilities.is_sev_attribute(attribute):
        raise Errno(errno.ENXIO)
    return capabilities.device_attribute(memory, request, attribute)


def _create_vcpu(file: VmFile, index: int) -> VcpuFile:
    if index >= _MAX_VCPUS:
        raise Errno(errno.EINVAL)
    if index in file.vcpus:
        raise Errno(errno.EEXIST)
    file.vcpus[index] = VcpuFile(file.vm, index, file.vm.new_vcpu())
    return file.vcpus[index]


def _set_region(file: VmFile, raw: bytes) -> None:
    slot, _, gpa, nbytes, hva = _REGION.unpack(raw)
    if slot >= _MAX_SLOTS or (gpa | nbytes | hva) % 4096:
        raise Errno(errno.EINVAL)
    if not nbytes:
        if file.slots.pop(slot, None) is None:
            raise Errno(errno.EINVAL)
        return
    others = (place for number, place in file.slots.items() if number != slot)
    if any(gpa < start + length and start < gpa + nbytes for start, length, _ in others):
        raise Errno(errno.EEXIST)
    file.slots[slot] = (gpa, nbytes, hva)
