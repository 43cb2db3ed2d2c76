"""Build x86-64 page tables: 4 or 5 levels; pages of 4 KiB, 2 MiB and 1 GiB; with or without a C-bit.

Sources: AMD64 Architecture Programmer's Manual, volume 2, section 5.3 (long-mode translation) and 15.34 (a
SEV guest's tables are always encrypted, so every entry that points to a table has the C-bit).
"""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Final

from sevkvm.abi import x86
from sevkvm.lab.expected import Mapping

LEAF_LEVEL: Final = {1 << 12: 1, 1 << 21: 2, 1 << 30: 3}  # page size -> level of its entry
_TABLE = struct.Struct("<512Q")


def index_of(gva: int, level: int) -> int:
    """Index of ``gva`` in its table of a level (1 = PT ... 5 = PML5)."""
    return gva >> 12 + 9 * (level - 1) & 511


class TableBuilder:
    """Tables under one root. Table pages are taken one after the other from ``[tables_gpa, tables_end)``."""

    def __init__(self, levels: int, tables_gpa: int, tables_end: int, cbit_pos: int | None) -> None:
        if levels not in (4, 5):
            raise ValueError("long mode has 4 or 5 levels")
        self.levels = levels
        self.cbit = 0 if cbit_pos is None else 1 << cbit_pos
        self.encrypted = cbit_pos is not None
        self.mappings: list[Mapping] = []
        self._tables: dict[int, list[int]] = {}
        self._next, self._end = tables_gpa, tables_end
        self.root_gpa = self._new_table()

    def _new_table(self) -> int:
        gpa = self._next
        if gpa >= self._end:
            raise ValueError("out of page-table pages")
        self._next += x86.PAGE_NBYTES
        self._tables[gpa] = [0] * x86.TABLE_ENTRIES
        return gpa

    def _entry(self, gva: int, level: int, *, create: bool) -> tuple[list[int], int]:
        """The table of ``level`` on the way to ``gva``, and the index in it."""
        table = self._tables[self.root_gpa]
        for upper in range(self.levels, level, -1):
            index = index_of(gva, upper)
            if not table[index] & x86.PTE_P:
                if not create:
                    raise KeyError(f"gva 0x{gva:x} has no table at level {upper - 1}")
                flags = x86.PTE_P | x86.PTE_RW | x86.PTE_A | (0 if gva >> 63 else x86.PTE_US)
                table[index] = self._new_table() | flags | self.cbit
            elif table[index] & x86.PTE_PS:
                raise ValueError(f"gva 0x{gva:x} is already mapped by a large page")
            table = self._tables[table[index] & x86.PTE_ADDRESS_MASK & ~self.cbit]
        return table, index_of(gva, level)

    def map(
        self,
        gva: int,
        gpa: int,
        page_nbytes: int = x86.PAGE_NBYTES,
        *,
        private: bool = True,
        writable: bool = True,
        user: bool = False,
        nx: bool = True,
        more: int = 0,
    ) -> None:
        """Map one page, with Accessed and Dirty set (no walk has a reason to write) and the bits of ``more``.

        The address must be aligned to the page size, the gva not yet mapped; ValueError otherwise.
        """
        level = LEAF_LEVEL[page_nbytes]
        if (gva | gpa) % page_nbytes:
            raise ValueError(f"gva 0x{gva:x}, gpa 0x{gpa:x}: not aligned to 0x{page_nbytes:x}")
        table, index = self._entry(gva, level, create=True)
        if table[index]:
            raise ValueError(f"gva 0x{gva:x} is already mapped")
        private = private and self.encrypted
        table[index] = (
            gpa
            | (x86.PTE_P | x86.PTE_A | x86.PTE_D | more)
            | (x86.PTE_PS if level > 1 else 0)
            | (x86.PTE_RW if writable else 0)
            | (x86.PTE_US if user else 0)
            | (x86.PTE_NX if nx else 0)
            | (self.cbit if private else 0)
        )
        self.mappings.append(Mapping(gva, gpa, page_nbytes, private, writable, user, nx))

    def restrict(self, gva: int, level: int, *, readonly: bool = False, nx: bool = False) -> None:
        """Take rights away in an upper entry: it holds for everything below, whatever the leaves say."""
        table, index = self._entry(gva, level, create=False)
        if readonly:
            table[index] &= ~x86.PTE_RW
        if nx:
            table[index] |= x86.PTE_NX
        span = 1 << 12 + 9 * (level - 1)
        self.mappings = [
            replace(m, writable=m.writable and not readonly, nx=m.nx or nx)
            if m.gva // span == gva // span
            else m
            for m in self.mappings
        ]

    def pages(self) -> list[tuple[int, bytes]]:
        """(gpa, 4096 bytes) of every table page, ascending."""
        return [(gpa, _TABLE.pack(*entries)) for gpa, entries in sorted(self._tables.items())]
