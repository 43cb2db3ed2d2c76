"""The paging form of a guest, as data: how its tables are to be read.

Source: AMD64 Architecture Programmer's Manual, volume 2, sections 5.2 (legacy-mode translation), 5.3 (long-mode
translation) and 15.34.5 (C-bit).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sevkvm.abi import x86
from sevkvm.paging.mode import PagingMode

__all__ = ["PagingForm", "PagingMode"]

MIN_CBIT: Final = 32
MAX_CBIT: Final = 51
_MIN_PHYS_BITS: Final = 32


@dataclass(frozen=True)
class PagingForm:
    """``root_gpa``: the top table, C-bit and PCID taken off; without meaning (0) when paging is off.

    ``cbit_pos`` is None for a guest without encryption. All that an encrypted guest reaches without paging or by
    32-bit tables, which have no C-bit, is private.
    ``nx``: EFER.NXE is set; without it bit 63 of an entry is reserved. 32-bit tables do not ask.
    ``phys_bits``: an entry's address bits from here up are reserved. ValueError for what no processor has.
    """

    mode: PagingMode
    root_gpa: int
    cbit_pos: int | None = None
    nx: bool = True
    phys_bits: int = x86.MAX_PHYS_BIT

    def __post_init__(self) -> None:
        if self.cbit_pos is not None and not MIN_CBIT <= self.cbit_pos <= MAX_CBIT:
            raise ValueError(f"the C-bit is one of {MIN_CBIT} to {MAX_CBIT}, not {self.cbit_pos}")
        if not _MIN_PHYS_BITS <= self.phys_bits <= x86.MAX_PHYS_BIT:
            raise ValueError(f"{self.phys_bits} is no width of physical addresses")
        if self.root_gpa & ~(self.mode.root_mask & ~self.cbit_mask):
            raise ValueError(f"0x{self.root_gpa:x} is not the gpa of a table: take C-bit and PCID off CR3")

    @property
    def levels(self) -> int:
        """How many levels of tables a walk goes through; 0 with paging off."""
        return self.mode.levels

    @property
    def encrypted(self) -> bool:
        """The guest's memory is encrypted."""
        return self.cbit_pos is not None

    @property
    def cbit_mask(self) -> int:
        """The C-bit as a mask, 0 where there is none."""
        return 0 if self.cbit_pos is None else 1 << self.cbit_pos

    @property
    def address_mask(self) -> int:
        """The bits that the gpa of a page can have, less the C-bit."""
        return x86.PTE_ADDRESS_MASK & (1 << self.phys_bits) - 1 & ~self.cbit_mask
