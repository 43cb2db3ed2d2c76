"""x86-64 numbers: control registers, page-table entry bits, page sizes.

Source: AMD64 Architecture Programmer's Manual, volume 2, chapters 3 and 5.
"""

from __future__ import annotations

from typing import Final

PAGE_SHIFT: Final = 12
PAGE_NBYTES: Final = 1 << PAGE_SHIFT
PAGE_MASK: Final = PAGE_NBYTES - 1
TABLE_ENTRIES: Final = 512
MAX_PHYS_BIT: Final = 52  # an entry's address field ends at bit 51

CR0_PE: Final = 1 << 0
CR0_WP: Final = 1 << 16
CR0_PG: Final = 1 << 31
CR4_PSE: Final = 1 << 4
CR4_PAE: Final = 1 << 5
CR4_LA57: Final = 1 << 12
CR4_PCIDE: Final = 1 << 17
CR4_SMEP: Final = 1 << 20
CR4_SMAP: Final = 1 << 21
EFER_LME: Final = 1 << 8
EFER_LMA: Final = 1 << 10
EFER_NXE: Final = 1 << 11

MSR_KERNEL_GS_BASE: Final = 0xC000_0102  # APM volume 2, section 3.2.6

CR3_ADDRESS_MASK: Final = 0x000F_FFFF_FFFF_F000
PTE_ADDRESS_MASK: Final = 0x000F_FFFF_FFFF_F000

PTE_P: Final = 1 << 0
PTE_RW: Final = 1 << 1
PTE_US: Final = 1 << 2
PTE_PWT: Final = 1 << 3
PTE_PCD: Final = 1 << 4
PTE_A: Final = 1 << 5
PTE_D: Final = 1 << 6
PTE_PS: Final = 1 << 7
PTE_G: Final = 1 << 8
PTE_NX: Final = 1 << 63

LEVEL_NAMES: Final = {5: "PML5E", 4: "PML4E", 3: "PDPE", 2: "PDE", 1: "PTE"}

PTE_PAT_LARGE: Final = (
    1 << 12
)  # of an entry with PTE_PS; a 4 KiB page's PAT bit is where PS is in other entries
_FLAG_NAMES: Final = (
    (PTE_P, "P"),
    (PTE_RW, "RW"),
    (PTE_US, "US"),
    (PTE_PWT, "PWT"),
    (PTE_PCD, "PCD"),
    (PTE_A, "A"),
    (PTE_D, "D"),
    (PTE_PS, "PS"),
    (PTE_G, "G"),
    (PTE_PAT_LARGE, "PAT"),
    (PTE_NX, "NX"),
)
FLAG_BITS: Final = sum(mask for mask, _ in _FLAG_NAMES)


def entry_flags(entry: int, level: int) -> list[str]:
    """Names of the flags set in an entry of a table of this level (1 = PT), as stored."""
    large = level > 1 and bool(entry & PTE_PS)
    names = []
    for mask, name in _FLAG_NAMES:
        if entry & mask and (mask != PTE_PAT_LARGE or large):
            names.append("PAT" if mask == PTE_PS and level == 1 else name)
    return names
