"""A vCPU's registers and what they say about paging: C-bit and PCID taken off CR3."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from sevkvm.abi import sev, x86
from sevkvm.paging.mode import PagingMode

if TYPE_CHECKING:
    from sevkvm.abi.kvm import CpuidEntry, Regs, Sregs


class VcpuState(NamedTuple):
    """Registers of one vCPU at one moment; ``sregs.cr3`` is as KVM returned it.

    ``kernel_gs_base``: what SWAPGS would load, None where KVM does not tell.
    ``unknown``: fields of ``sregs`` that nobody told (a dump has no room for some); their values are no facts.
    """

    index: int  # type: ignore[assignment]  # hides tuple.index(), which nobody asks of a vCPU
    regs: Regs
    sregs: Sregs
    kernel_gs_base: int | None = None
    unknown: frozenset[str] = frozenset()

    @property
    def nx_enabled(self) -> bool:
        """EFER.NXE: bit 63 of an entry means no-execute (32-bit entries have none). Taken to be set where untold."""
        return "efer" in self.unknown or bool(self.sregs.efer & x86.EFER_NXE)


def paging_mode(sregs: Sregs) -> PagingMode:
    """How the vCPU translates now.

    Source: AMD64 APM volume 2, section 5.1 (CR0.PG, EFER.LMA, CR4.LA57, CR4.PAE, CR4.PSE).
    """
    if not sregs.cr0 & x86.CR0_PG:
        return PagingMode.OFF
    if sregs.efer & x86.EFER_LMA:
        return PagingMode.LEVEL5 if sregs.cr4 & x86.CR4_LA57 else PagingMode.LEVEL4
    if sregs.cr4 & x86.CR4_PAE:
        return PagingMode.PAE
    return PagingMode.PSE if sregs.cr4 & x86.CR4_PSE else PagingMode.LEGACY


def root_gpa(cr3: int, mode: PagingMode, cbit_pos: int | None) -> int:
    """The top table's gpa: CR3 without PCID or cache bits, what the mode does not look at, and the C-bit.

    0 with paging off.
    """
    cbit_mask = 0 if cbit_pos is None else 1 << cbit_pos
    return cr3 & mode.root_mask & ~cbit_mask


def cbit_from_cpuid(entries: Iterable[CpuidEntry]) -> int | None:
    """The C-bit position that leaf 8000_001F tells (EBX[5:0]); None where it tells none.

    Source: AMD64 APM volume 3, appendix E.4.17. A position below 32 is no C-bit.
    """
    for entry in entries:
        if entry.function == sev.CPUID_LEAF:
            return plausible_cbit(entry.ebx & sev.CPUID_EBX_CBIT_MASK)
    return None


def plausible_cbit(position: int | None) -> int | None:
    """The position if a page-table entry can have its C-bit there (32 to 51), else None."""
    return position if position is not None and 32 <= position < x86.MAX_PHYS_BIT else None
