"""Many tables of one level at a time, to distinct ranges of leaves: the typed face of csrc/sk_scan.h."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sevkvm.native import Call, ffi, lib

if TYPE_CHECKING:
    from sevkvm.paging.decoder import TableDecoder

_SPAN: Final = struct.Struct("<QQQ")


class TableSpan(NamedTuple):
    """``struct sk_span``: a range of guest-physical memory that leaves of these flags map."""

    gpa: int
    nbytes: int
    flags: int


class ScanTotals(NamedTuple):
    """``struct sk_scan_totals``; ``pages`` counts leaf entries by the level they stand at (index 0 unused)."""

    tables: int
    pages: tuple[int, ...]
    reserved: int
    spans_full: bool
    tables_full: bool


class TableScan:
    """Owns a ``struct sk_scan *``: the distinct leaves of many tables. A context manager."""

    __slots__ = ("_pointer",)

    def __init__(self, flags_mask: int, max_spans: int, max_tables: int) -> None:
        call = Call()
        out = ffi.new("struct sk_scan **")
        call.check(lib.sk_scan_create(flags_mask, max_spans, max_tables, out, call.err))
        self._pointer = out[0]

    def __enter__(self) -> TableScan:
        return self

    def __exit__(self, *_: object) -> None:
        lib.sk_scan_destroy(self._pointer)
        self._pointer = ffi.NULL

    def add(self, decoder: TableDecoder, level: int, tables: Sequence[bytes]) -> None:
        """Decode whole tables of this level."""
        joined = b"".join(tables)
        if len(joined) != len(tables) * decoder.levels[level].table_nbytes:
            raise ValueError(f"a table of level {level} has {decoder.levels[level].table_nbytes} bytes")
        call = Call()
        call.check(
            lib.sk_scan_tables(
                self._pointer, decoder.paging, level, ffi.from_buffer(joined), len(tables), call.err
            )
        )

    def take_tables(self) -> array[int]:
        """The distinct tables (gpa, ascending) that were led to since the last call."""
        out = ffi.new("uint64_t **")
        count = lib.sk_scan_take_tables(self._pointer, ffi.cast("const uint64_t **", out))
        tables = array("Q")
        tables.frombytes(ffi.buffer(out[0], count * tables.itemsize))
        return tables

    def spans(self) -> bytes:
        """All distinct spans, by flags and then gpa, packed; :func:`unpack_spans` reads them."""
        out = ffi.new("struct sk_span **")
        count = lib.sk_scan_spans(self._pointer, ffi.cast("const struct sk_span **", out))
        return bytes(ffi.buffer(out[0], count * _SPAN.size))

    def totals(self) -> ScanTotals:
        """What has been counted so far."""
        out: Any = ffi.new("struct sk_scan_totals *")
        lib.sk_scan_totals(self._pointer, out)
        return ScanTotals(
            out.tables, tuple(out.pages), out.reserved, bool(out.spans_full), bool(out.tables_full)
        )


def unpack_spans(packed: bytes) -> Iterator[TableSpan]:
    """Read what :meth:`TableScan.spans` packed."""
    return map(TableSpan._make, _SPAN.iter_unpack(packed))
