"""Decode page-table entries and tables: the typed face of csrc/sk_walk.h.

One decoder a thread and way of reading entries: made once, used for every walk.
"""

from __future__ import annotations

import struct
import threading
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sevkvm.native import ffi, lib

if TYPE_CHECKING:
    from sevkvm.paging.form import PagingForm

_MAX_ENTRIES: Final = 1024  # SK_MAX_ENTRIES
_RUN: Final = struct.Struct("<QQIHH")
_local = threading.local()  # a decoder's buffers serve one thread at a time


class TableShape(NamedTuple):
    """Tables of one level: log2 of the gva bytes an entry spans, entries, bytes (4096, or 32 for PAE's top)."""

    shift: int
    nentries: int
    table_nbytes: int


class TableRun(NamedTuple):
    """``struct sk_run``: ``nentries`` neighbouring entries from ``first``; page_nbytes is 0 for a table."""

    gpa: int
    page_nbytes: int
    flags: int
    first: int
    nentries: int


class TableDecoder:
    """Page-table entries of one paging form. Its buffers are reused: one thread at a time.

    ``mode``: one of ``enum sk_paging_mode``. ``levels``: its tables by level, from 1 (PT); index 0 is unused.
    ``stored``: an entry as it lies in a table.
    """

    __slots__ = ("_entry", "_runs", "levels", "paging", "stored")

    def __init__(self, mode: int, *, nx: bool, cbit_mask: int, address_mask: int) -> None:
        paging: Any = ffi.new("struct sk_paging *")
        paging.mode = mode
        paging.nx = nx
        paging.cbit_mask = cbit_mask
        paging.address_mask = address_mask
        self.paging = paging
        self._entry: Any = ffi.new("struct sk_entry *")
        self._runs = ffi.new("struct sk_run[]", _MAX_ENTRIES)
        self.levels = tuple(
            TableShape(
                lib.sk_walk_shift(paging, level),
                lib.sk_walk_nentries(paging, level),
                lib.sk_walk_table_nbytes(paging, level),
            )
            for level in range(lib.sk_walk_levels(paging) + 1)
        )
        self.stored = struct.Struct("<I" if self.levels[-1].nentries == _MAX_ENTRIES else "<Q")

    def canonical(self, gva: int) -> bool:
        """Can it be translated: canonical in long mode, below 4 GiB in the other modes?"""
        return bool(lib.sk_walk_canonical(self.paging, gva))

    def entry(self, level: int, raw: int) -> tuple[int, int, int]:
        """(gpa, page_nbytes or 0, EntryFlag bits) of one entry; all 0 if it is not present."""
        entry = self._entry
        lib.sk_walk_entry(self.paging, level, raw, entry)
        return entry.gpa, entry.page_nbytes, entry.flags

    def table(self, level: int, table: bytes) -> list[TableRun]:
        """The present entries of a table: leaves merged to runs, each entry to a table by itself."""
        if not 1 <= level < len(self.levels) or len(table) != self.levels[level].table_nbytes:
            raise ValueError(f"{len(table)} bytes are no table of level {level}")
        count = lib.sk_walk_table(self.paging, level, ffi.from_buffer(table), self._runs)
        return list(map(TableRun._make, _RUN.iter_unpack(ffi.buffer(self._runs, count * _RUN.size))))


def decoder_for(form: PagingForm) -> TableDecoder:
    """The calling thread's decoder for tables of this form, whatever their root."""
    try:
        decoders: dict[tuple[int, bool, int | None, int], TableDecoder] = _local.decoders
    except AttributeError:
        decoders = _local.decoders = {}
    key = (form.mode, form.nx, form.cbit_pos, form.phys_bits)
    found = decoders.get(key)
    if found is None:
        found = decoders[key] = TableDecoder(
            form.mode, nx=form.nx, cbit_mask=form.cbit_mask, address_mask=form.address_mask
        )
    return found
