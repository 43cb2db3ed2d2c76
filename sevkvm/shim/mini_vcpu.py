"""vCPUs of mini_kvm: registers that are kept and never executed (Linux arch/x86/kvm/x86.c, v6.18)."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from typing import Final

from sevkvm.abi import kvm as abi
from sevkvm.shim import sealed_vcpu
from sevkvm.shim.sev_op import Errno
from sevkvm.shim.target import TargetMemory
from sevkvm.shim.vcpu_state import get, get_cpuid, put, put_cpuid, reset_regs, sregs2_of
from sevkvm.shim.vm import Vcpu, Vm

_OTHER_SETS: Final = {
    abi.KVM_SET_FPU: abi.KVM_GET_FPU,
    abi.KVM_SET_XSAVE: abi.KVM_GET_XSAVE,
    abi.KVM_SET_XCRS: abi.KVM_GET_XCRS,
    abi.KVM_SET_DEBUGREGS: abi.KVM_GET_DEBUGREGS,
}
_OTHER_GETS: Final = frozenset(_OTHER_SETS.values())


@dataclass(eq=False)
class VcpuFile:
    """A vCPU: registers as they were set; ``other`` are whole structs by the request that gets them."""

    vm: Vm
    index: int
    state: Vcpu
    regs: abi.Regs = field(default_factory=reset_regs)
    cpuid: list[abi.CpuidEntry] = field(default_factory=list)
    other: dict[int, bytes] = field(default_factory=dict)

    @property
    def sregs(self) -> abi.Sregs:
        """Control and segment registers."""
        return self.state.sregs

    @sregs.setter
    def sregs(self, sregs: abi.Sregs) -> None:
        self.state.sregs = sregs


def vcpu_ioctl(file: VcpuFile, memory: TargetMemory, request: int, argument: int) -> int:
    """Its result, or Errno; KVM_RUN is not answered here."""
    if request in sealed_vcpu.REQUESTS:
        answer = sealed_vcpu.ioctl(file.vm, file.state, memory, request, argument)
        if answer is not None:
            return answer
    match request:
        case abi.KVM_GET_REGS:
            put(memory, argument, file.regs.pack())
        case abi.KVM_SET_REGS:
            file.regs = abi.Regs.unpack(get(memory, argument, abi.REGS_NBYTES))
        case abi.KVM_GET_SREGS:
            put(memory, argument, file.sregs.pack())
        case abi.KVM_GET_SREGS2:
            put(memory, argument, sregs2_of(file.sregs))
        case abi.KVM_SET_SREGS | abi.KVM_SET_SREGS2 | abi.KVM_SET_GUEST_DEBUG:
            pass  # remembered above
        case abi.KVM_GET_CPUID2:
            put_cpuid(memory, argument, file.cpuid)
        case abi.KVM_SET_CPUID2:
            file.cpuid = get_cpuid(memory, argument)
        case _ if request in _OTHER_GETS:
            put(memory, argument, file.other.get(request, bytes(abi.request_nbytes(request))))
        case _ if request in _OTHER_SETS:
            file.other[_OTHER_SETS[request]] = get(memory, argument, abi.request_nbytes(request))
        case _:
            raise Errno(errno.ENOTTY)
    return 0
