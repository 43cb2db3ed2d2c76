"""A vCPU's registers and what they say about paging: C-bit and PCID taken off CR3."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from sevkvm import errors
from sevkvm.abi import sev, x86

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
        """EFER.NXE: bit 63 of an entry means no-execute."""
        return bool(self.sregs.efer & x86.EFER_NXE)


def root_gpa(cr3: int, cbit_pos: int | None) -> int:
    """The top table's gpa: CR3 without PCID or cache bits (11:0), bits 63:52 and the C-bit."""
    cbit_mask = 0 if cbit_pos is None else 1 << cbit_pos
    return cr3 & x86.CR3_ADDRESS_MASK & ~cbit_mask


def paging_levels(sregs: Sregs) -> int:
    """4 or 5 in long mode, 0 with paging off.

    Raises SevKvmError for the 32-bit modes (legacy and PAE), which the walker does not read yet.
    Source: AMD64 APM volume 2, section 5.1 (CR0.PG, EFER.LMA, CR4.LA57).
    """
    if not sregs.cr0 & x86.CR0_PG:
        return 0
    if not sregs.efer & x86.EFER_LMA:
        mode = "PAE" if sregs.cr4 & x86.CR4_PAE else "32-bit"
        raise errors.SevKvmError(
            f"the vCPU uses {mode} paging, which is not read yet",
            help="read guest-physical memory with `sevkvm xp`, or name a 64-bit table with --cr3",
        )
    return 5 if sregs.cr4 & x86.CR4_LA57 else 4


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
