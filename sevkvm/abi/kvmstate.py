"""What KVM tells of a vCPU besides general and system registers, as far as a monitor prints it.

Source: Linux arch/x86/include/uapi/asm/kvm.h and include/uapi/linux/kvm.h (v6.18); the XSAVE area: AMD64 APM
volume 2, section 11.5 (legacy region as FXSAVE's, header, YMM_Hi128 at 576).
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

_FPR = struct.Struct("<QH6x")
_FPU_CONTROL = struct.Struct("<HHB19xI")
_XMM = struct.Struct("<QQ")
_DEBUG = struct.Struct("<6Q")
_XCR = struct.Struct("<IIQ")

_SHADOW_OFFSET: Final = 11  # interrupt.shadow, behind the 8 bytes of exception
_EVENT_FLAGS_OFFSET: Final = 20
_SMM_OFFSET: Final = 24
_VALID_SHADOW: Final = 1 << 2
_VALID_SMM: Final = 1 << 3
_MP_HALTED: Final = 3
_YMM_OFFSET: Final = 576
_ST_OFFSET: Final = 32
_XMM_OFFSET: Final = 160


class Fpu(NamedTuple):
    """``struct kvm_xsave``: ``fpr`` as (mantissa, sign and exponent), ``xmm`` and ``ymm_high`` as (low, high) 64 bits.

    ``ymm_high``, the upper halves of the YMM registers, means something only where XCR0 has them enabled.
    Not from ``struct kvm_fpu``: KVM leaves its MXCSR 0 (kvm_arch_vcpu_ioctl_get_fpu, v6.18).
    """

    fpr: tuple[tuple[int, int], ...]
    fcw: int
    fsw: int
    ftwx: int
    mxcsr: int
    xmm: tuple[tuple[int, int], ...]
    ymm_high: tuple[tuple[int, int], ...]

    @classmethod
    def unpack(cls, data: bytes) -> Fpu:
        """From the kernel's 4096 bytes."""
        fpr = tuple(_FPR.unpack_from(data, _ST_OFFSET + 16 * number) for number in range(8))
        fcw, fsw, ftwx, mxcsr = _FPU_CONTROL.unpack_from(data)
        xmm, ymm_high = (
            tuple(_XMM.unpack_from(data, offset + 16 * number) for number in range(16))
            for offset in (_XMM_OFFSET, _YMM_OFFSET)
        )
        return cls(fpr, fcw, fsw, ftwx, mxcsr, xmm, ymm_high)


class DebugRegs(NamedTuple):
    """``struct kvm_debugregs``: DR0 to DR3, DR6, DR7."""

    addresses: tuple[int, int, int, int]
    dr6: int
    dr7: int

    @classmethod
    def unpack(cls, data: bytes) -> DebugRegs:
        """From the kernel's 128 bytes."""
        *addresses, dr6, dr7 = _DEBUG.unpack_from(data)
        return cls((addresses[0], addresses[1], addresses[2], addresses[3]), dr6, dr7)


class MoreState(NamedTuple):
    """One vCPU beyond ``struct kvm_regs`` and ``kvm_sregs``; None is what this KVM does not tell.

    ``shadow``: interrupts are held off for one instruction. ``halted``: it waits in HLT.
    """

    fpu: Fpu | None = None
    debug: DebugRegs | None = None
    shadow: bool | None = None
    smm: bool | None = None
    halted: bool | None = None
    xcr0: int | None = None


def unpack_events(data: bytes) -> tuple[bool | None, bool | None]:
    """(shadow, smm) of ``struct kvm_vcpu_events``; None for a part that its flags call invalid."""
    (flags,) = struct.unpack_from("<I", data, _EVENT_FLAGS_OFFSET)
    shadow = bool(data[_SHADOW_OFFSET]) if flags & _VALID_SHADOW else None
    return shadow, bool(data[_SMM_OFFSET]) if flags & _VALID_SMM else None


def unpack_halted(data: bytes) -> bool:
    """Does ``struct kvm_mp_state`` say KVM_MP_STATE_HALTED?"""
    return bool(struct.unpack_from("<I", data)[0] == _MP_HALTED)


def unpack_xcr0(data: bytes) -> int | None:
    """XCR0 of ``struct kvm_xcrs``; None if it is not among the 16 there can be."""
    (count,) = struct.unpack_from("<I", data)
    for number in range(min(count, 16)):
        index, _, value = _XCR.unpack_from(data, 8 + 16 * number)
        if index == 0:
            return int(value)
    return None
