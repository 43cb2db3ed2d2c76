"""Register ioctls of a vCPU that LAUNCH_UPDATE_VMSA has sealed (guest_state_protected).

VMs of the new types say EINVAL. Those of the default type answer as if nothing were: GET_SREGS with the five
registers that the kernel tracks and zeros elsewhere, GET_REGS with what userspace had set, and, once the guest has
been entered, with what the first exit leaves of it, which is next to nothing.
Source: Linux arch/x86/kvm/x86.c (the vCPU ioctls), svm/sev.c (sev_es_sync_from_ghcb), v6.18.
"""

from __future__ import annotations

import errno
from typing import Final

from sevkvm.abi import kvm as abi
from sevkvm.shim.sev_op import Errno
from sevkvm.shim.target import TargetMemory
from sevkvm.shim.vcpu_state import get, put, sealed_sregs, sregs2_of, sregs_of
from sevkvm.shim.vm import Vcpu, Vm

_GUESTDBG_ENABLE: Final = 1
_FPU_GETS: Final = frozenset((abi.KVM_GET_FPU, abi.KVM_GET_XSAVE, abi.KVM_GET_XSAVE2))
_FPU_SETS: Final = frozenset((abi.KVM_SET_FPU, abi.KVM_SET_XSAVE))
_REGISTERS: Final = (
    abi.KVM_GET_REGS,
    abi.KVM_SET_REGS,
    abi.KVM_GET_SREGS,
    abi.KVM_SET_SREGS,
    abi.KVM_GET_SREGS2,
    abi.KVM_SET_SREGS2,
    abi.KVM_GET_DEBUGREGS,
    abi.KVM_SET_DEBUGREGS,
    abi.KVM_GET_XCRS,
    abi.KVM_SET_XCRS,
    *sorted(_FPU_GETS | _FPU_SETS),
)
REQUESTS: Final = (*_REGISTERS, abi.KVM_SET_GUEST_DEBUG)


def ioctl(vm: Vm, vcpu: Vcpu, memory: TargetMemory, request: int, argument: int) -> int | None:
    """The answer to one of REQUESTS; None where sealing makes no difference. Errno as in the kernel.

    What an unsealed vCPU is told is remembered as far as it matters later, and left to whoever keeps its registers.
    """
    if not vcpu.protected:
        _remember(vcpu, memory, request, argument)
        return None
    if request == abi.KVM_SET_GUEST_DEBUG or vm.has_protected_state:
        raise Errno(errno.EINVAL)
    if request == abi.KVM_GET_REGS and vcpu.entered:
        put(memory, argument, abi.Regs.unpack(bytes(abi.REGS_NBYTES))._replace(rflags=2).pack())
    elif request == abi.KVM_GET_SREGS:
        put(memory, argument, sealed_sregs(vcpu.sregs).pack())
    elif request == abi.KVM_GET_SREGS2:
        put(memory, argument, sregs2_of(sealed_sregs(vcpu.sregs)))
    elif request in (abi.KVM_SET_SREGS, abi.KVM_SET_SREGS2):
        given = _sregs_given(memory, request, argument)
        vcpu.sregs = vcpu.sregs._replace(apic_base=given.apic_base)
    elif request in _FPU_GETS:
        put(memory, argument, bytes(abi.request_nbytes(request)))
    elif request not in _FPU_SETS:
        return None
    return 0


def _remember(vcpu: Vcpu, memory: TargetMemory, request: int, argument: int) -> None:
    if request in (abi.KVM_SET_SREGS, abi.KVM_SET_SREGS2):
        vcpu.sregs = _sregs_given(memory, request, argument)
    elif request == abi.KVM_SET_GUEST_DEBUG:
        control = int.from_bytes(get(memory, argument, 4), "little")
        vcpu.guest_debug = bool(control & _GUESTDBG_ENABLE)


def _sregs_given(memory: TargetMemory, request: int, argument: int) -> abi.Sregs:
    data = get(memory, argument, abi.request_nbytes(request))
    return abi.Sregs.unpack(data) if request == abi.KVM_SET_SREGS else sregs_of(data)
