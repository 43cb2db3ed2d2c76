"""Rules about control registers: protections that every mapping relies on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from sevkvm.abi import x86
from sevkvm.audit.rules import NX_OFF, SMAP_OFF, SMEP_OFF, WP_OFF, Rule

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sevkvm.audit.report import Findings
    from sevkvm.vcpu import VcpuState


class _Check(NamedTuple):
    rule: Rule
    register: str
    mask: int


_CHECKS: Final = (
    _Check(NX_OFF, "efer", x86.EFER_NXE),
    _Check(WP_OFF, "cr0", x86.CR0_WP),
    _Check(SMEP_OFF, "cr4", x86.CR4_SMEP),
    _Check(SMAP_OFF, "cr4", x86.CR4_SMAP),
)


def examine(registers: Sequence[VcpuState], findings: Findings) -> None:
    """One finding a rule, with every vCPU that it concerns; vCPUs without paging are left out."""
    paged = [state for state in registers if state.sregs.cr0 & x86.CR0_PG]
    for rule, register, mask in _CHECKS:
        known = [state for state in paged if register not in state.unknown]
        if not known:
            findings.skip(rule, _why(registers, paged, register))
            continue
        off = [state for state in known if not getattr(state.sregs, register) & mask]
        if off and findings.counted(rule):
            vcpus = [state.index for state in off]
            value = getattr(off[0].sregs, register)
            told = f"{rule.title}: {register.upper()} is 0x{value:x} on vCPU {vcpus[0]}"
            if len(vcpus) > 1:
                told += f"; {len(vcpus)} of {len(known)} vCPUs"
            findings.add(rule, told, vcpus=vcpus)


def _why(registers: Sequence[VcpuState], paged: Sequence[VcpuState], register: str) -> str:
    if not registers:
        return "there is no vCPU"
    return f"{register.upper()} is not known" if paged else "no vCPU uses paging"
