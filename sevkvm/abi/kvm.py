"""KVM's user ABI: request numbers, structs and their dataclasses.

Source: Linux include/uapi/linux/kvm.h and arch/x86/include/uapi/asm/kvm.h (v6.18). Request numbers are computed
from struct sizes and pinned as literals in tests/unit/test_abi.py; tests/csrc/abi_check.c compares with the
host's headers.

The structs are NamedTuples: making a dataclass of each costs 1 to 2 ms at every start of the program.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from ioctl_opt import IOC, IOC_NONE, IOC_READ, IOC_WRITE

KVMIO: Final = 0xAE


def _io(number: int) -> int:
    return int(IOC(IOC_NONE, KVMIO, number, 0))


def _ior(number: int, nbytes: int) -> int:
    return int(IOC(IOC_READ, KVMIO, number, nbytes))


def _iow(number: int, nbytes: int) -> int:
    return int(IOC(IOC_WRITE, KVMIO, number, nbytes))


def _iowr(number: int, nbytes: int) -> int:
    return int(IOC(IOC_READ | IOC_WRITE, KVMIO, number, nbytes))


_REGS = struct.Struct("<18Q")
_SEGMENT = struct.Struct("<QIH9Bx")
_DTABLE = struct.Struct("<QH6x")
_USERSPACE_REGION = struct.Struct("<IIQQQ")
_ENC_REGION = struct.Struct("<QQ")
_CPUID_HEADER = struct.Struct("<II")
_MSRS_HEADER = struct.Struct("<II")
_MSR_ENTRY = struct.Struct("<IIQ")
_CPUID_ENTRY = struct.Struct("<10I")
_ENABLE_CAP = struct.Struct("<II4Q64x")
_DEVICE_ATTR = struct.Struct("<IIQQ")

REGS_NBYTES: Final = _REGS.size
SREGS_NBYTES: Final = 8 * _SEGMENT.size + 2 * _DTABLE.size + 5 * 8 + 2 * 8 + 32
SREGS2_NBYTES: Final = SREGS_NBYTES - 32 + 8 + 32  # flags and PDPTRs instead of the interrupt bitmap
_FPU_NBYTES = 416
_GUEST_DEBUG_NBYTES = 72
_DEBUGREGS_NBYTES = 128
_EVENTS_NBYTES = 64
_MP_STATE_NBYTES = 4
_XSAVE_NBYTES = 4096
_XCRS_NBYTES = 392
CPUID_ENTRY_NBYTES: Final = _CPUID_ENTRY.size
ENABLE_CAP_NBYTES: Final = _ENABLE_CAP.size
DEVICE_ATTR_NBYTES: Final = _DEVICE_ATTR.size

KVM_API_VERSION: Final = 12

# on /dev/kvm
KVM_GET_API_VERSION: Final = _io(0x00)
KVM_CREATE_VM: Final = _io(0x01)
KVM_CHECK_EXTENSION: Final = _io(0x03)
KVM_GET_VCPU_MMAP_SIZE: Final = _io(0x04)
KVM_GET_SUPPORTED_CPUID: Final = _iowr(0x05, _CPUID_HEADER.size)
KVM_GET_DEVICE_ATTR: Final = _iow(0xE2, _DEVICE_ATTR.size)  # on devices too
KVM_HAS_DEVICE_ATTR: Final = _iow(0xE3, _DEVICE_ATTR.size)
# on a VM
KVM_CREATE_VCPU: Final = _io(0x41)
KVM_SET_USER_MEMORY_REGION: Final = _iow(0x46, _USERSPACE_REGION.size)
KVM_CREATE_IRQCHIP: Final = _io(0x60)
KVM_ENABLE_CAP: Final = _iow(0xA3, _ENABLE_CAP.size)
KVM_MEMORY_ENCRYPT_OP: Final = _iowr(0xBA, 8)  # encoded as unsigned long, though the payload is kvm_sev_cmd
KVM_MEMORY_ENCRYPT_REG_REGION: Final = _ior(0xBB, _ENC_REGION.size)
KVM_MEMORY_ENCRYPT_UNREG_REGION: Final = _ior(0xBC, _ENC_REGION.size)
# on a vCPU
KVM_RUN: Final = _io(0x80)
KVM_GET_REGS: Final = _ior(0x81, _REGS.size)
KVM_SET_REGS: Final = _iow(0x82, _REGS.size)
KVM_GET_SREGS: Final = _ior(0x83, SREGS_NBYTES)
KVM_SET_SREGS: Final = _iow(0x84, SREGS_NBYTES)
KVM_GET_MSRS: Final = _iowr(0x88, _MSRS_HEADER.size)
KVM_SET_MSRS: Final = _iow(0x89, _MSRS_HEADER.size)
KVM_GET_FPU: Final = _ior(0x8C, _FPU_NBYTES)
KVM_SET_FPU: Final = _iow(0x8D, _FPU_NBYTES)
KVM_SET_CPUID2: Final = _iow(0x90, _CPUID_HEADER.size)
KVM_GET_CPUID2: Final = _iowr(0x91, _CPUID_HEADER.size)
KVM_GET_MP_STATE: Final = _ior(0x98, _MP_STATE_NBYTES)
KVM_SET_GUEST_DEBUG: Final = _iow(0x9B, _GUEST_DEBUG_NBYTES)
KVM_GET_VCPU_EVENTS: Final = _ior(0x9F, _EVENTS_NBYTES)
KVM_GET_DEBUGREGS: Final = _ior(0xA1, _DEBUGREGS_NBYTES)
KVM_SET_DEBUGREGS: Final = _iow(0xA2, _DEBUGREGS_NBYTES)
KVM_GET_XSAVE: Final = _ior(0xA4, _XSAVE_NBYTES)
KVM_SET_XSAVE: Final = _iow(0xA5, _XSAVE_NBYTES)
KVM_GET_XCRS: Final = _ior(0xA6, _XCRS_NBYTES)
KVM_SET_XCRS: Final = _iow(0xA7, _XCRS_NBYTES)
KVM_GET_SREGS2: Final = _ior(0xCC, SREGS2_NBYTES)
KVM_SET_SREGS2: Final = _iow(0xCD, SREGS2_NBYTES)
KVM_GET_XSAVE2: Final = _ior(0xCF, _XSAVE_NBYTES)  # may be more, see KVM_CAP_XSAVE2

KVM_CAP_VM_COPY_ENC_CONTEXT_FROM: Final = 197
KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM: Final = 206
KVM_CAP_VM_TYPES: Final = 235  # answers a mask of 1 << type
KVM_X86_DEFAULT_VM: Final = 0  # arguments of KVM_CREATE_VM
KVM_X86_SEV_VM: Final = 2
KVM_X86_SEV_ES_VM: Final = 3
KVM_X86_SNP_VM: Final = 4
KVM_X86_GRP_SEV: Final = 1  # a group of attributes of /dev/kvm, and its first attribute
KVM_X86_SEV_VMSA_FEATURES: Final = 0
KVM_MEM_READONLY: Final = 1 << 1

REQUEST_NAMES: Final = {
    value: name
    for name, value in list(globals().items())
    if name.startswith("KVM_") and isinstance(value, int) and value >> 8 & 0xFF == KVMIO
}


def request_nbytes(request: int) -> int:
    """The size of the struct that a request number names."""
    return request >> 16 & 0x3FFF


def request_name(request: int) -> str:
    """The kernel's name of a KVM request number, or the number."""
    return REQUEST_NAMES.get(request, f"ioctl 0x{request:08x}")


class Regs(NamedTuple):
    """``struct kvm_regs``: general registers."""

    rax: int
    rbx: int
    rcx: int
    rdx: int
    rsi: int
    rdi: int
    rsp: int
    rbp: int
    r8: int
    r9: int
    r10: int
    r11: int
    r12: int
    r13: int
    r14: int
    r15: int
    rip: int
    rflags: int

    @classmethod
    def unpack(cls, data: bytes | bytearray) -> Regs:
        """From the 144 bytes of the kernel's struct."""
        return cls(*_REGS.unpack(data))

    def pack(self) -> bytes:
        """The kernel's struct."""
        return _REGS.pack(*self)


class Segment(NamedTuple):
    """``struct kvm_segment``; ``type`` is the 4-bit descriptor type, ``db l s g avl`` its flag bits."""

    base: int = 0
    limit: int = 0
    selector: int = 0
    type: int = 0
    present: int = 0
    dpl: int = 0
    db: int = 0
    s: int = 0
    l: int = 0  # noqa: E741  the processor's own name of the long-mode bit
    g: int = 0
    avl: int = 0
    unusable: int = 0

    @classmethod
    def unpack(cls, data: bytes | bytearray) -> Segment:
        """From the 24 bytes of the kernel's struct."""
        base, limit, selector, *bits = _SEGMENT.unpack(data)
        return cls(base, limit, selector, *bits)

    def pack(self) -> bytes:
        """The kernel's struct."""
        return _SEGMENT.pack(*self)


class Dtable(NamedTuple):
    """``struct kvm_dtable``: GDT or IDT."""

    base: int = 0
    limit: int = 0

    @classmethod
    def unpack(cls, data: bytes | bytearray) -> Dtable:
        """From the 16 bytes of the kernel's struct."""
        return cls(*_DTABLE.unpack(data))

    def pack(self) -> bytes:
        """The kernel's struct."""
        return _DTABLE.pack(self.base, self.limit)


_SEGMENT_NAMES = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")


class Sregs(NamedTuple):
    """``struct kvm_sregs``: segments, descriptor tables and control registers; ``cr3`` as the vCPU has it."""

    cs: Segment
    ds: Segment
    es: Segment
    fs: Segment
    gs: Segment
    ss: Segment
    tr: Segment
    ldt: Segment
    gdt: Dtable
    idt: Dtable
    cr0: int
    cr2: int
    cr3: int
    cr4: int
    cr8: int
    efer: int
    apic_base: int
    interrupt_bitmap: bytes = bytes(32)

    @classmethod
    def unpack(cls, data: bytes | bytearray) -> Sregs:
        """From the 312 bytes of the kernel's struct."""
        cs, ds, es, fs, gs, ss, tr, ldt = (Segment.unpack(data[24 * i : 24 * i + 24]) for i in range(8))
        gdt, idt = (Dtable.unpack(data[192 + 16 * i : 208 + 16 * i]) for i in range(2))
        control: tuple[int, int, int, int, int, int, int] = struct.unpack_from("<7Q", data, 224)
        return cls(cs, ds, es, fs, gs, ss, tr, ldt, gdt, idt, *control, bytes(data[280:312]))

    def pack(self) -> bytes:
        """The kernel's struct."""
        return (
            b"".join(getattr(self, name).pack() for name in _SEGMENT_NAMES)
            + self.gdt.pack()
            + self.idt.pack()
            + struct.pack("<7Q", self.cr0, self.cr2, self.cr3, self.cr4, self.cr8, self.efer, self.apic_base)
            + self.interrupt_bitmap
        )


class CpuidEntry(NamedTuple):
    """``struct kvm_cpuid_entry2``."""

    function: int
    index: int  # type: ignore[assignment]  # hides tuple.index(), which nobody asks of an entry
    flags: int
    eax: int
    ebx: int
    ecx: int
    edx: int


def pack_cpuid2(entries: list[CpuidEntry], room: int | None = None) -> bytes:
    """``struct kvm_cpuid2`` with the entries, padded to ``room`` entries (``nent`` then says ``room``)."""
    count = len(entries) if room is None else room
    body = b"".join(
        _CPUID_ENTRY.pack(e.function, e.index, e.flags, e.eax, e.ebx, e.ecx, e.edx, 0, 0, 0) for e in entries
    )
    return _CPUID_HEADER.pack(count, 0) + body.ljust(count * _CPUID_ENTRY.size, b"\0")


def unpack_cpuid2(data: bytes | bytearray) -> list[CpuidEntry]:
    """The entries of a ``struct kvm_cpuid2``; at most as many as the bytes hold."""
    (count, _) = _CPUID_HEADER.unpack_from(data)
    count = min(count, (len(data) - _CPUID_HEADER.size) // _CPUID_ENTRY.size)
    offsets = (_CPUID_HEADER.size + i * _CPUID_ENTRY.size for i in range(count))
    return [CpuidEntry(*_CPUID_ENTRY.unpack_from(data, offset)[:7]) for offset in offsets]


def pack_msr(index: int, data: int = 0) -> bytes:
    """``struct kvm_msrs`` with one ``struct kvm_msr_entry``."""
    return _MSRS_HEADER.pack(1, 0) + _MSR_ENTRY.pack(index, 0, data)


def unpack_msr(raw: bytes) -> int:
    """The value in what :func:`pack_msr` packed."""
    value: int = _MSR_ENTRY.unpack_from(raw, _MSRS_HEADER.size)[2]
    return value


def pack_memory_region(slot: int, flags: int, gpa: int, nbytes: int, hva: int) -> bytes:
    """``struct kvm_userspace_memory_region``."""
    return _USERSPACE_REGION.pack(slot, flags, gpa, nbytes, hva)


def pack_enc_region(hva: int, nbytes: int) -> bytes:
    """``struct kvm_enc_region``."""
    return _ENC_REGION.pack(hva, nbytes)


class DeviceAttr(NamedTuple):
    """``struct kvm_device_attr``: the value is, or goes, at ``addr`` (hva)."""

    flags: int
    group: int
    attr: int
    addr: int

    @classmethod
    def unpack(cls, data: bytes | bytearray) -> DeviceAttr:
        """From the kernel's 24 bytes."""
        return cls(*_DEVICE_ATTR.unpack(data))

    def pack(self) -> bytes:
        """The kernel's struct."""
        return _DEVICE_ATTR.pack(self.flags, self.group, self.attr, self.addr)


class EnableCap(NamedTuple):
    """``struct kvm_enable_cap``; what the arguments mean is the capability's affair."""

    capability: int
    flags: int = 0
    arg0: int = 0
    arg1: int = 0
    arg2: int = 0
    arg3: int = 0

    def pack(self) -> bytes:
        """The kernel's struct (104 bytes)."""
        arguments = self.arg0, self.arg1, self.arg2, self.arg3
        return _ENABLE_CAP.pack(self.capability, self.flags, *arguments)

    @classmethod
    def unpack(cls, data: bytes | bytearray) -> EnableCap:
        """From the kernel's struct."""
        return cls(*_ENABLE_CAP.unpack(data))
