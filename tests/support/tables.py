"""Page tables for tests, built independently of what reads them: any paging mode, a C-bit anywhere.

A builder remembers what it was asked to map, so the expected answers never come from walking its own tables.
"""

from __future__ import annotations

import struct
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from sevkvm.paging.form import PagingForm, PagingMode

if TYPE_CHECKING:
    from collections.abc import Sequence

P, RW, US, PS, NX = 1, 2, 4, 0x80, 1 << 63
KIB4, MIB2, MIB4, GIB1 = 0x1000, 0x20_0000, 0x40_0000, 0x4000_0000
PAGE_SIZES = (KIB4, MIB2, GIB1)
TABLE = struct.Struct("<512Q")
TABLE32 = struct.Struct("<1024I")
PAE_ROOT_OFFSET = 0x520  # in its page, whose other bytes are noise


class Layout(NamedTuple):
    """``spans``: gva bytes of one entry, from level 1 upwards. ``pages``: level of the leaf by page size."""

    nentries: int
    spans: tuple[int, ...]
    pages: dict[int, int]


_LONG = (KIB4, MIB2, GIB1, 1 << 39, 1 << 48)
LAYOUTS = {
    PagingMode.LEGACY: Layout(1024, (KIB4, MIB4), {KIB4: 1}),
    PagingMode.PSE: Layout(1024, (KIB4, MIB4), {KIB4: 1, MIB4: 2}),
    PagingMode.PAE: Layout(512, (KIB4, MIB2, GIB1), {KIB4: 1, MIB2: 2}),
    PagingMode.LEVEL4: Layout(512, _LONG[:4], {KIB4: 1, MIB2: 2, GIB1: 3}),
    PagingMode.LEVEL5: Layout(512, _LONG, {KIB4: 1, MIB2: 2, GIB1: 3}),
}


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
    """Tables under one root; table pages are handed out from ``next_gpa`` upwards.

    ``mode``: a PagingMode, or 4 or 5 for long mode. ``pages``: the entries of each table by its gpa.
    """

    mode: int = 4
    cbit: int | None = None
    next_gpa: int = 0x10_0000
    pages: dict[int, list[int]] = field(default_factory=dict)
    mapped: list[Mapped] = field(default_factory=list)
    root: int = 0

    def __post_init__(self) -> None:
        self.layout = LAYOUTS[PagingMode(self.mode)]
        self.root = self.new_table()
        if self.mode == PagingMode.PAE:
            del self.pages[self.root]
            self.root += PAE_ROOT_OFFSET
            self.pages[self.root] = [0] * 4

    @property
    def levels(self) -> int:
        return len(self.layout.spans)

    @property
    def narrow(self) -> bool:
        """Entries of 32 bits."""
        return self.layout.nentries == 1024

    @property
    def mask(self) -> int:
        """The C-bit of an entry; 32-bit ones have none."""
        return 1 << self.cbit if self.cbit is not None and not self.narrow else 0

    @property
    def form(self) -> PagingForm:
        return PagingForm(PagingMode(self.mode), self.root, self.cbit)

    def new_table(self) -> int:
        gpa = self.next_gpa
        self.next_gpa += 0x1000
        self.pages[gpa] = [0] * self.layout.nentries
        return gpa

    def link(self, level: int) -> int:
        """The bits of an entry of ``level`` that leads to a table, without its address; PAE's top one has no rights."""
        rights = 0 if self.mode == PagingMode.PAE and level == 3 else RW | US
        return P | rights | self.mask

    def slot(self, gva: int, level: int) -> tuple[int, int]:
        """(gpa of the table, index) of the entry of ``level`` for gva; tables above it are made as needed."""
        gpa = self.root
        for upper in range(self.levels, level, -1):
            index = self._index(gva, upper)
            entry = self.pages[gpa][index]
            if not entry & P:
                entry = self.new_table() | self.link(upper)
                self.pages[gpa][index] = entry
            gpa = entry & 0x000F_FFFF_FFFF_F000 & ~self.mask
        return gpa, self._index(gva, level)

    def _index(self, gva: int, level: int) -> int:
        return gva // self.layout.spans[level - 1] % self.layout.nentries

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
        private = self.cbit is not None if private is None else private
        assert gva % page_nbytes == gpa % page_nbytes == 0
        address = gpa
        if page_nbytes == MIB4:
            address = gpa % (1 << 32) | (gpa >> 32) << 13
        raw = address | P | (RW if writable else 0) | (US if user else 0) | (NX if nx else 0)
        raw |= (PS if page_nbytes > KIB4 else 0) | (self.mask if private else 0)
        self.set_entry(gva, self.layout.pages[page_nbytes], raw)
        page = Mapped(gva, gpa, page_nbytes, private, writable, user, nx)
        self.mapped.append(page)
        return page

    def reader(self) -> CountingReader:
        return CountingReader(dict(map(self._packed, self.pages.items())))

    def _packed(self, table: tuple[int, list[int]]) -> tuple[int, bytes]:
        gpa, entries = table
        if len(entries) == 4:
            page = bytearray(b"\xa5" * 4096)
            struct.pack_into("<4Q", page, PAE_ROOT_OFFSET, *entries)
            return gpa - PAE_ROOT_OFFSET, bytes(page)
        return gpa, (TABLE32 if self.narrow else TABLE).pack(*entries)


class CountingReader:
    """Table pages from a dict, None for any other; counts how often each was fetched."""

    def __init__(self, pages: dict[int, bytes], *, caching: bool = False) -> None:
        self.pages = pages
        self.fetched: Counter[int] = Counter()
        self.batches = 0
        self.caching = caching
        self.kept = 0

    def read_tables(self, gpas: Sequence[int], *, keep: bool = True) -> list[bytes | None]:
        assert len(set(gpas)) == len(gpas), "asked for a table twice in one batch"
        assert all(gpa % 4096 == 0 for gpa in gpas)
        wanted = [gpa for gpa in gpas if not (self.caching and gpa in self.fetched)]
        self.batches += bool(wanted)
        self.kept += keep
        self.fetched.update(wanted)
        return [self.pages.get(gpa) for gpa in gpas]
