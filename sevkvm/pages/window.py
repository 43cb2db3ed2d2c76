"""Read page tables as if they mapped a window of addresses alone, or all but the window.

A scan knows no virtual addresses, so the tables at the window's edges are shown to it with some entries left out.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from sevkvm.abi.x86 import PTE_P
from sevkvm.native import EntryFlag
from sevkvm.paging.decoder import decoder_for

if TYPE_CHECKING:
    from sevkvm.pages.directmap import DirectMap
    from sevkvm.paging.fetch import TableReader
    from sevkvm.paging.form import PagingForm

_TABLE: Final = struct.Struct("<512Q")
_LEAF: Final = int(EntryFlag.LEAF)
_RESERVED: Final = int(EntryFlag.RESERVED)


class Kept:
    """A TableReader that reads no table twice; for the few thousand that are looked at more than once.

    ``tell`` gets how many tables have been read so far.
    """

    def __init__(self, reader: TableReader, tell: Callable[[int], None] = lambda count: None) -> None:
        self._reader = reader
        self._tell = tell
        self._count = 0
        self._pages: dict[int, bytes | None] = {}
        self.keeping = True

    def read_tables(self, gpas: Sequence[int], *, keep: bool = True) -> list[bytes | None]:
        """See ``TableReader``; once ``keeping`` is over, only what is kept already."""
        missing = [gpa for gpa in gpas if gpa not in self._pages]
        found = (
            dict(zip(missing, self._reader.read_tables(missing, keep=keep), strict=True)) if missing else {}
        )
        if self.keeping:
            self._pages |= found
        self._count += len(missing)
        self._tell(self._count)
        return [found[gpa] if gpa in found else self._pages[gpa] for gpa in gpas]


class Masked:
    """A TableReader that leaves out entries: ``shown`` has the indexes of those that stay, by the table's gpa."""

    def __init__(self, reader: TableReader, shown: Mapping[int, frozenset[int]]) -> None:
        self._reader = reader
        self._shown = shown

    def read_tables(self, gpas: Sequence[int], *, keep: bool = True) -> list[bytes | None]:
        """See ``TableReader``."""
        pages = self._reader.read_tables(gpas, keep=keep)
        return [self._cut(gpa, page) for gpa, page in zip(gpas, pages, strict=True)]

    def _cut(self, gpa: int, page: bytes | None) -> bytes | None:
        shown = self._shown.get(gpa)
        if page is None or shown is None:
            return page
        entries = (
            entry if index in shown and entry & PTE_P else 0
            for index, entry in enumerate(_TABLE.unpack(page))
        )
        return _TABLE.pack(*entries)


class Split:
    """Address spaces cut in two: the direct map each of them has (or None), and everything else.

    Exact for tables that stand at one level; a table that is one of several levels (a self-map) shows its part of the
    window at none of them.
    """

    def __init__(self, reader: TableReader, spaces: Iterable[tuple[PagingForm, DirectMap | None]]) -> None:
        self._reader = reader
        self._inside: dict[int, set[int]] = {}
        self._outside: dict[int, set[int]] = {}
        self.edges: dict[int, int] = {}
        """The tables that lie on both sides: their level, by gpa."""
        self._whole_inside: set[int] = set()
        self._whole_outside: set[int] = set()
        for form, window in spaces:
            if window is not None:
                base = (1 << 64) - (1 << 12 + 9 * form.levels)
                self._cut(form, window, form.levels, form.root_gpa, base)

    @property
    def inside(self) -> Masked:
        """The window alone."""
        return self._masked(self._inside, self._whole_inside)

    @property
    def outside(self) -> Masked:
        """All but the window."""
        return self._masked(self._outside, self._whole_outside)

    def _masked(self, shown: Mapping[int, set[int]], whole: set[int]) -> Masked:
        return Masked(self._reader, {gpa: frozenset(own) for gpa, own in shown.items() if gpa not in whole})

    def _cut(self, form: PagingForm, window: DirectMap, level: int, gpa: int, base: int) -> None:
        """Sort the entries of one table at the window's edge; goes down ``levels`` - 3 times."""
        decoder = decoder_for(form)
        nbytes = 1 << decoder.levels[level].shift
        (table,) = self._reader.read_tables([gpa])
        self.edges[gpa] = level
        inside, outside = self._inside.setdefault(gpa, set()), self._outside.setdefault(gpa, set())
        if table is None:
            return
        for run in decoder.table(level, table):
            for index in range(run.first, run.first + run.nentries):
                # the root's lower half is not canonical here, and outside of any window
                start = base + index * nbytes
                end = start + nbytes
                if end <= window.gva or start >= window.gva + window.nbytes:
                    outside.add(index)
                    into = self._whole_outside
                elif start >= window.gva and end <= window.gva + window.nbytes:
                    inside.add(index)
                    into = self._whole_inside
                else:
                    inside.add(index)
                    outside.add(index)
                    if not run.flags & (_LEAF | _RESERVED):
                        self._cut(form, window, level - 1, run.gpa, start)
                    continue
                if not run.flags & (_LEAF | _RESERVED):
                    into.add(run.gpa)
