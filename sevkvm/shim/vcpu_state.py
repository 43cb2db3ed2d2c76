"""What a vCPU's ioctls carry: registers after reset and after sealing, CPUID tables to and from the caller."""

from __future__ import annotations

import errno
import struct
from typing import Final

from sevkvm.abi import kvm as abi
from sevkvm.shim.sev_op import Errno
from sevkvm.shim.target import TargetMemory, read_exactly

_RESET_CR0: Final = 0x6000_0010
_CPUID_MAX_ENTRIES: Final = 256
_ENTRY_NBYTES: Final = abi.CPUID_ENTRY_NBYTES
_COMMON_NBYTES: Final = abi.SREGS_NBYTES - 32
_NO_SREGS: Final = abi.Sregs.unpack(bytes(abi.SREGS_NBYTES))


def reset_regs() -> abi.Regs:
    """General registers after reset."""
    return abi.Regs.unpack(bytes(abi.REGS_NBYTES))._replace(rip=0xFFF0, rflags=2)


def reset_sregs() -> abi.Sregs:
    """Control registers after reset; segments are left empty."""
    return _NO_SREGS._replace(cr0=_RESET_CR0, apic_base=0xFEE0_0900)


def sealed_sregs(s: abi.Sregs) -> abi.Sregs:
    """What GET_SREGS tells of a sealed vCPU (SEV-ES, default VM type): only what the kernel itself tracks."""
    return _NO_SREGS._replace(cr0=s.cr0, cr4=s.cr4, cr8=s.cr8, efer=s.efer, apic_base=s.apic_base)


def sregs2_of(s: abi.Sregs) -> bytes:
    """``struct kvm_sregs2`` of a ``struct kvm_sregs``: the same up to the interrupt bitmap."""
    return s.pack()[:_COMMON_NBYTES].ljust(abi.SREGS2_NBYTES, b"\0")


def sregs_of(sregs2: bytes) -> abi.Sregs:
    """And the way back: flags and PDPTRs are lost."""
    return abi.Sregs.unpack(sregs2[:_COMMON_NBYTES].ljust(abi.SREGS_NBYTES, b"\0"))


def get(memory: TargetMemory, hva: int, nbytes: int) -> bytes:
    """copy_from_user, or EFAULT."""
    data = read_exactly(memory, hva, nbytes)
    if data is None:
        raise Errno(errno.EFAULT)
    return data


def put(memory: TargetMemory, hva: int, data: bytes) -> None:
    """copy_to_user, or EFAULT."""
    if memory.write(hva, data) < len(data):
        raise Errno(errno.EFAULT)


def put_cpuid(memory: TargetMemory, hva: int, entries: list[abi.CpuidEntry]) -> None:
    """A ``struct kvm_cpuid2`` out, if the caller's has room; E2BIG."""
    (room,) = struct.unpack("<I", get(memory, hva, 4))
    if room < len(entries):
        raise Errno(errno.E2BIG)
    put(memory, hva, abi.pack_cpuid2(entries))


def get_cpuid(memory: TargetMemory, hva: int) -> list[abi.CpuidEntry]:
    """A ``struct kvm_cpuid2`` in; E2BIG."""
    (count,) = struct.unpack("<I", get(memory, hva, 4))
    if count > _CPUID_MAX_ENTRIES:
        raise Errno(errno.E2BIG)
    return abi.unpack_cpuid2(get(memory, hva, 8 + count * _ENTRY_NBYTES))
