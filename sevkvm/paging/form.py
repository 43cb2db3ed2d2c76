"""The paging form of a guest, as data: how its tables are to be read.

Source: AMD64 Architecture Programmer's Manual, volume 2, sections 5.3 (long-mode translation) and 15.34.5 (C-bit).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sevkvm.abi import x86

MIN_CBIT: Final = 32
MAX_CBIT: Final = 51
_INDEX_BITS: Final = 9


def entry_nbytes(level: int) -> int:
    """How much guest-virtual memory one entry of a table of this level (1 = PT) spans; at 1 to 3 a page size."""
    return 1 << x86.PAGE_SHIFT + _INDEX_BITS * (level - 1)


@dataclass(frozen=True)
class PagingForm:
    """``levels`` is 4 or 5, or 0 with paging off; ``root_gpa`` the top table, C-bit and PCID taken off.

    ``cbit_pos`` is None for a guest without encryption.
    ``nx``: EFER.NXE is set; without it bit 63 of an entry is reserved. ValueError for what no processor has.
    """

    levels: int
    root_gpa: int
    cbit_pos: int | None = None
    nx: bool = True

    def __post_init__(self) -> None:
        if self.levels not in (0, 4, 5):
            raise ValueError(f"long mode has 4 or 5 levels, not {self.levels}")
        if self.cbit_pos is not None and not MIN_CBIT <= self.cbit_pos <= MAX_CBIT:
            raise ValueError(f"the C-bit is one of {MIN_CBIT} to {MAX_CBIT}, not {self.cbit_pos}")
        if self.root_gpa & ~self.address_mask:
            raise ValueError(f"0x{self.root_gpa:x} is not the gpa of a table: take C-bit and PCID off CR3")

    @property
    def cbit_mask(self) -> int:
        """The C-bit as a mask, 0 where there is none."""
        return 0 if self.cbit_pos is None else 1 << self.cbit_pos

    @property
    def address_mask(self) -> int:
        """Bits 12 to 51 of an entry, less the C-bit."""
        return x86.PTE_ADDRESS_MASK & ~self.cbit_mask
