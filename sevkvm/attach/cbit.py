"""Where the C-bit is: never guessed silently."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from sevkvm import errors, native
from sevkvm.abi import sev
from sevkvm.vcpu import cbit_from_cpuid, plausible_cbit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sevkvm.attach.options import AttachOptions
    from sevkvm.attach.told import MonitorFacts
    from sevkvm.guestparts import Holder
    from sevkvm.host.kvm import VcpuFd
    from sevkvm.memory.policy import SevInfo


def with_cbit(
    info: SevInfo,
    options: AttachOptions,
    facts: MonitorFacts,
    vcpus: Sequence[VcpuFd],
    holder: Holder,
) -> SevInfo:
    """The C-bit position, from whoever knows it first; unknown stays None and is refused where it is needed."""
    if options.cbit_pos is not None:
        if plausible_cbit(options.cbit_pos) is None:
            raise errors.UsageError(
                f"bit {options.cbit_pos} cannot be the C-bit",
                help="it is one of 32 to 51; 47 or 51 on EPYC so far",
            )
        return replace(info, cbit_pos=options.cbit_pos, cbit_source="option")
    if facts.cbit_pos is not None:
        return replace(info, cbit_pos=facts.cbit_pos, cbit_source="qmp")
    position = _guest_cbit(vcpus, holder)
    if position is not None:
        return replace(info, cbit_pos=position, cbit_source="guest-cpuid")
    _, ebx, _, _ = native.cpuid(sev.CPUID_LEAF)
    position = plausible_cbit(ebx & sev.CPUID_EBX_CBIT_MASK)
    if position is not None:
        return replace(info, cbit_pos=position, cbit_source="host-cpuid")
    return info


def _guest_cbit(vcpus: Sequence[VcpuFd], holder: Holder) -> int | None:
    """What the first vCPU's CPUID tells its guest; that vCPU must not run while it is asked."""
    if not vcpus:
        return None
    holder.hold()
    try:
        return cbit_from_cpuid(vcpus[0].get_cpuid2())
    except errors.IoctlError:
        return None  # a VMM that set no CPUID, or a vCPU whose state is protected
    finally:
        holder.release()
