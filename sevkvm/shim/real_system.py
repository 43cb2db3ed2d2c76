"""The real ``/dev/kvm`` and what SEV adds to its answers: capabilities, attributes, CPUID."""

from __future__ import annotations

import errno
import os
from typing import Final

from sevkvm import native
from sevkvm.abi import kvm as abi
from sevkvm.shim import capabilities
from sevkvm.shim.cpuid import with_sev
from sevkvm.shim.firmware import Firmware
from sevkvm.shim.target import TargetMemory, read_exactly

KVM_PATH: Final = "/dev/kvm"
_CPUID_MAX_ENTRIES: Final = 256


class RealSystem:
    """A descriptor of our own, which is asked for the kernel's half of an answer."""

    def __init__(self, firmware: Firmware, cbit_pos: int) -> None:
        self._firmware = firmware
        self._cbit_pos = cbit_pos
        self._fd = os.open(KVM_PATH, os.O_RDWR | os.O_CLOEXEC)

    def ioctl(self, memory: TargetMemory, request: int, argument: int) -> int | None:
        """A result or -errno; None where the answer is the kernel's alone."""
        match request:
            case abi.KVM_CHECK_EXTENSION if argument in capabilities.CAPABILITIES:
                below = native.ioctl(self._fd, request, argument)
                return capabilities.check_extension(self._firmware, argument, below)
            case abi.KVM_GET_SUPPORTED_CPUID:
                return self._supported_cpuid(memory, argument)
            case abi.KVM_HAS_DEVICE_ATTR | abi.KVM_GET_DEVICE_ATTR:
                attribute = capabilities.read_attribute(memory, argument)
                if attribute is not None and capabilities.is_sev_attribute(attribute):
                    return capabilities.device_attribute(memory, request, attribute)
        return None

    def _supported_cpuid(self, memory: TargetMemory, hva: int) -> int:
        """The kernel's own answer with SEV added, in place where the leaf is there already."""
        head = read_exactly(memory, hva, 8)
        if head is None:
            return -errno.EFAULT
        room = int.from_bytes(head[:4], "little")
        data = bytearray(abi.pack_cpuid2([], room=min(room, _CPUID_MAX_ENTRIES)))
        result = native.ioctl(self._fd, abi.KVM_GET_SUPPORTED_CPUID, native.address_of(data))
        if result:
            return result
        entries = with_sev(abi.unpack_cpuid2(data), self._cbit_pos)
        answer = abi.pack_cpuid2(entries)
        if len(entries) > room:
            return -errno.E2BIG
        return 0 if memory.write(hva, answer) == len(answer) else -errno.EFAULT

    def close(self) -> None:
        """Close our descriptor."""
        os.close(self._fd)


def usable() -> bool:
    """May this user open the real ``/dev/kvm``, and is it KVM?"""
    try:
        fd = os.open(KVM_PATH, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return native.ioctl(fd, abi.KVM_GET_API_VERSION) == abi.KVM_API_VERSION
    finally:
        os.close(fd)
