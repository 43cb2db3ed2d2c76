"""Page tables for tests, built independently of what reads them: 4 or 5 levels, a C-bit anywhere.

A builder remembers what it was asked to map, so the expected answers never come from walking its own tables.
"""

from __future__ import annotations

import struct
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sevkvm.paging.form import PagingForm, PagingMode

if TYPE_CHECKING:
    from collections.abc import Sequence

P, RW, US, PS, NX = 1, 2, 4, 0x80, 1 << 63
KIB4, MIB2, GIB1 = 0x1000, 0x20_0000, 0x4000_0000
LEVEL_OF = {KIB4: 1, MIB2: 2, GIB1: 3}
PAGE_SIZES = (KIB4, MIB2, GIB1)
TABLE = struct.Struct("<512Q")


@dataclass(frozen=True)
class Mapped:
    """One page that was mapped: what a walk to it must answer. The upper levels forbid nothing unless said."""

    gva: int
    gpa: int
    page_nbytes: int
    private: bool
    writable: bool
    user: bool
    nx: bool


@dataclass
class Tables:
    """Tables under one root; table pages are handed out from ``next_gpa`` upwards."""

    levels: int = 4
    cbit: int | None = None
    next_gpa: int = 0x10_0000
    pages: dict[int, list[int]] = field(default_factory=dict)
    mapped: list[Mapped] = field(default_factory=list)
    root: int = 0

    def __post_init__(self) -> None:
        self.root = self.new_table()

    @property
    def mask(self) -> int:
        return 1 << self.cbit if self.cbit is not None else 0

    @property
    def form(self) -> PagingForm:
        return PagingForm(PagingMode(self.levels), self.root, self.cbit)

    def new_table(self) -> int:
        gpa = self.next_gpa
        self.next_gpa += 0x1000
        self.pages[gpa] = [0] * 512
        return gpa

    def slot(self, gva: int, level: int) -> tuple[int, int]:
        """(gpa of the table, index) of the entry of ``level`` for gva; tables above it are made as needed."""
        gpa = self.root
        for upper in range(self.levels, level, -1):
            index = (gva // 512 ** (upper - 1) // 4096) % 512
            entry = self.pages[gpa][index]
            if not entry & P:
                entry = self.new_table() | P | RW | US | self.mask
                self.pages[gpa][index] = entry
            gpa = entry & 0x000F_FFFF_FFFF_F000 & ~self.mask
        return gpa, (gva // 512 ** (level - 1) // 4096) % 512

    def set_entry(self, gva: int, level: int, raw: int) -> None:
        table, index = self.slot(gva, level)
        self.pages[table][index] = raw

    def get_entry(self, gva: int, level: int) -> int:
        table, index = self.slot(gva, level)
        return self.pages[table][index]

    def map(
        self,
        gva: int,
        gpa: int,
        page_nbytes: int = KIB4,
        *,
        private: bool | None = None,
        writable: bool = True,
        user: bool = False,
        nx: bool = False,
    ) -> Mapped:
        """Map one page; private by default where there is a C-bit."""
        private = bool(self.mask) if private is None else private
        assert gva % page_nbytes == gpa % page_nbytes == 0
        raw = gpa | P | (RW if writable else 0) | (US if user else 0) | (NX if nx else 0)
        raw |= (PS if page_nbytes > KIB4 else 0) | (self.mask if private else 0)
        self.set_entry(gva, LEVEL_OF[page_nbytes], raw)
        page = Mapped(gva, gpa, page_nbytes, private, writable, user, nx)
        self.mapped.append(page)
        return page

    def reader(self) -> CountingReader:
        return CountingReader({gpa: TABLE.pack(*entries) for gpa, entries in self.pages.items()})


class CountingReader:
    """Table pages from a dict, None for any other; counts how often each was fetched."""

    def __init__(self, pages: dict[int, bytes], *, caching: bool = False) -> None:
        self.pages = pages
        self.fetched: Counter[int] = Counter()
        self.batches = 0
        self.caching = caching

    def read_tables(self, gpas: Sequence[int], *, keep: bool = True) -> list[bytes | None]:
        assert len(set(gpas)) == len(gpas), "asked for a table twice in one batch"
        assert all(gpa % 4096 == 0 for gpa in gpas)
        wanted = [gpa for gpa in gpas if not (self.caching and gpa in self.fetched)]
        self.batches += bool(wanted)
        self.fetched.update(wanted)
        return [self.pages.get(gpa) for gpa in gpas]
