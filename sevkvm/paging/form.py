"""The paging form of a guest, as data: how its tables are to be read."""

from __future__ import annotations

from dataclasses import dataclass

from sevkvm.abi import x86


@dataclass(frozen=True)
class PagingForm:
    """``levels`` is 4 or 5; ``root_gpa`` the top table; ``cbit_pos`` None for a guest without encryption."""

    levels: int
    root_gpa: int
    cbit_pos: int | None = None
    nx: bool = True

    @property
    def cbit_mask(self) -> int:
        """The C-bit as a mask, 0 where there is none."""
        return 0 if self.cbit_pos is None else 1 << self.cbit_pos

    @property
    def address_mask(self) -> int:
        """Bits 12 to 51 of an entry, less the C-bit."""
        return x86.PTE_ADDRESS_MASK & ~self.cbit_mask
