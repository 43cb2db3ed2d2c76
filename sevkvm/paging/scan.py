"""List what whole address spaces map: level by level, each distinct table fetched and decoded once.

Virtual addresses are not kept, so a table that many entries lead to costs nothing twice, and a guest that maps one
table 512**3 times is scanned as quickly as any. Work is bounded by levels x distinct tables.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from sevkvm.abi.x86 import PAGE_MASK
from sevkvm.native import EntryFlag
from sevkvm.paging.decoder import decoder_for
from sevkvm.paging.fetch import fetch_tables
from sevkvm.paging.form import PagingMode
from sevkvm.paging.tablescan import TableScan, TableSpan, unpack_spans

if TYPE_CHECKING:
    from sevkvm.paging.fetch import TableReader
    from sevkvm.paging.form import PagingForm

BATCH: Final = 256  # tables asked for at once: 1 MiB


@dataclass(frozen=True)
class Limits:
    """Where a scan of a hostile guest stops growing; what was dropped then is told in ``ScanResult.limits_hit``.

    tables: distinct tables of one level (2**22 map 8 TiB by 4 KiB pages; 64 MiB of memory at most).
    spans: distinct ranges of leaves (48 MiB at most). Both are cut at half of the number at the earliest.
    unreadable: unreadable tables that are listed; all are counted.
    """

    tables: int = 1 << 22
    spans: int = 1 << 21
    unreadable: int = 1024


@dataclass(frozen=True)
class UnreadableTable:
    """An entry (or a CR3) leads to a table of ``level`` at ``gpa``, where nothing can be read."""

    level: int
    gpa: int


@dataclass
class ScanResult:
    """What some address spaces map. Flags are the leaves' own: what upper levels forbid is not in them.

    tables_by_level: distinct tables decoded. pages_by_level: leaf entries in them, each counted once (level 1 is
    4 KiB, 2 is 2 MiB, 3 is 1 GiB). reserved: entries that would fault. table_gpas: every table page, ascending.
    limits_hit: names of the fields of Limits that cut the scan.
    """

    tables_by_level: dict[int, int] = field(default_factory=dict)
    pages_by_level: dict[int, int] = field(default_factory=dict)
    reserved: int = 0
    table_gpas: array[int] = field(default_factory=lambda: array("Q"))
    unreadable: list[UnreadableTable] = field(default_factory=list)
    unreadable_count: int = 0
    limits_hit: tuple[str, ...] = ()
    packed_spans: bytes = b""

    def spans(self) -> Iterator[TableSpan]:
        """Distinct ranges (gpa, nbytes, flags), by flags and then gpa; equal flags neither overlap nor touch."""
        return unpack_spans(self.packed_spans)

    def ranges(self, private: bool) -> Iterator[tuple[int, int]]:
        """``(gpa, end)`` of what is mapped with (or without) the C-bit; ascending if only that was told apart."""
        wanted = int(EntryFlag.PRIVATE) if private else 0
        for gpa, nbytes, flags in self.spans():
            if flags & EntryFlag.PRIVATE == wanted:
                yield gpa, gpa + nbytes


def leaves(
    reader: TableReader,
    forms: Sequence[PagingForm],
    *,
    tell_apart: EntryFlag = EntryFlag.PRIVATE,
    limits: Limits | None = None,
) -> ScanResult:
    """Scan the address spaces of several roots (every vCPU's) together.

    tell_apart: the flags by which ranges are kept apart; fewer flags, fewer ranges.
    """
    limits = limits or Limits()
    result = ScanResult()
    groups: dict[tuple[PagingMode, bool, int | None, int], list[PagingForm]] = {}
    for form in forms:  # forms that read entries alike share tables, 4- and 5-level ones included
        if form.levels:  # paging off maps nothing by tables
            alike = PagingMode.LEVEL5 if form.mode.long else form.mode
            groups.setdefault((alike, form.nx, form.cbit_pos, form.phys_bits), []).append(form)
    with TableScan(tell_apart, limits.spans, limits.tables) as scan:
        for group in groups.values():
            _scan_group(scan, reader, group, result, limits)
        totals = scan.totals()
        result.packed_spans = scan.spans()
    result.pages_by_level = {level: count for level, count in enumerate(totals.pages) if count}
    result.reserved = totals.reserved
    # PAE's top tables are parts of a page
    result.table_gpas = array("Q", sorted({gpa & ~PAGE_MASK for gpa in result.table_gpas}))
    cut = {
        "tables": totals.tables_full,
        "spans": totals.spans_full,
        "unreadable": result.unreadable_count > len(result.unreadable),
    }
    result.limits_hit = tuple(name for name, hit in cut.items() if hit)
    return result


def _scan_group(
    scan: TableScan,
    reader: TableReader,
    forms: Sequence[PagingForm],
    result: ScanResult,
    limits: Limits,
) -> None:
    deepest = max(forms, key=lambda form: form.levels)
    decoder = decoder_for(deepest)
    for level in range(deepest.levels, 0, -1):
        tables = scan.take_tables()
        roots = {form.root_gpa for form in forms if form.levels == level}
        if roots:
            tables = array("Q", sorted(roots.union(tables)))
        for start in range(0, len(tables), BATCH):
            batch = tables[start : start + BATCH]
            found = fetch_tables(reader, batch, decoder.levels[level].table_nbytes)
            readable = [table for table in found if table is not None]
            scan.add(decoder, level, readable)
            result.tables_by_level[level] = result.tables_by_level.get(level, 0) + len(readable)
            if len(readable) == len(batch):
                result.table_gpas.extend(batch)
                continue
            for gpa, table in zip(batch, found, strict=True):
                if table is not None:
                    result.table_gpas.append(gpa)
                    continue
                result.unreadable_count += 1
                if len(result.unreadable) < limits.unreadable:
                    result.unreadable.append(UnreadableTable(level, gpa))
