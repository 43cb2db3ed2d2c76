"""Rules about the tables themselves: entries that fault, tables that cannot be read, tables that map themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

from sevkvm.abi.x86 import PAGE_NBYTES
from sevkvm.audit.report import Entry, Place
from sevkvm.audit.rules import RESERVED, SELF_MAP, UNREADABLE
from sevkvm.native import EntryFlag
from sevkvm.paging.decoder import decoder_for
from sevkvm.paging.fetch import fetch_tables

if TYPE_CHECKING:
    from sevkvm.audit.scene import Scene, View
    from sevkvm.paging.decoder import TableRun
    from sevkvm.paging.form import PagingForm

TABLES_MAX: Final = 1 << 15
ENTRIES_MAX: Final = 1 << 16
_BATCH: Final = 256
_LEAF, _RESERVED = int(EntryFlag.LEAF), int(EntryFlag.RESERVED)


class _Seen(NamedTuple):
    """A run of entries of the table of ``level`` at ``gpa``; ``gva``: what the first translates."""

    level: int
    gpa: int
    gva: int
    run: TableRun
    table: bytes


def examine(scene: Scene) -> None:
    """What the scan has counted is looked for, so that it can be shown."""
    found = scene.pages.scan
    assert found is not None
    _unreadable(scene)
    # a table that stands at two levels is counted at both
    several = sum(found.tables_by_level.values()) > len(found.table_gpas)
    if not (found.reserved and scene.findings.wants(RESERVED)) and not (
        several and scene.findings.wants(SELF_MAP)
    ):
        return
    left, shown = TABLES_MAX, 0
    walked: set[tuple[int, int]] = set()
    for form in dict.fromkeys(view.form for view in scene.views):
        upper: dict[int, int] = {}
        for level, tables in _levels(scene, form, upper, walked):
            left -= len(tables)
            if left < 0 or shown >= ENTRIES_MAX:
                scene.findings.cut(
                    f"root 0x{form.root_gpa:x}: not all entries with reserved bits and self-maps were looked for, "
                    f"after {TABLES_MAX} tables or {ENTRIES_MAX} entries"
                )
                return
            for seen in tables:
                shown += _tell(scene, form, level, seen, upper)


class _Table(NamedTuple):
    """A table page; ``gva``: the first address that it translates, where it was met first."""

    gpa: int
    gva: int
    data: bytes
    runs: list[TableRun]


def _levels(
    scene: Scene, form: PagingForm, upper: dict[int, int], walked: set[tuple[int, int]]
) -> Iterator[tuple[int, list[_Table]]]:
    """The tables of a form, top down, some at a time; but for those that were ``walked`` at that level before.

    ``upper``: the highest level that each table stands at; filled before its entries are told.
    """
    decoder = decoder_for(form)
    tables = {form.root_gpa: 0}
    for level in range(form.levels, 0, -1):
        shape = decoder.levels[level]
        fresh = [gpa for gpa in tables if (level, gpa) not in walked]
        walked.update((level, gpa) for gpa in fresh)
        for gpa in fresh:
            upper.setdefault(gpa, level)
        lower: dict[int, int] = {}
        for start in range(0, len(fresh), _BATCH):
            gpas = fresh[start : start + _BATCH]
            pages = fetch_tables(scene.memory, gpas, shape.table_nbytes)
            batch = [
                _Table(gpa, tables[gpa], data, decoder.table(level, data))
                for gpa, data in zip(gpas, pages, strict=True)
                if data is not None
            ]
            yield level, batch
            for table in batch:
                for run in table.runs:
                    # what a table leads to that stands higher up was walked there
                    if not run.flags & (_LEAF | _RESERVED) and upper.get(run.gpa, 0) < level:
                        lower.setdefault(run.gpa, table.gva + (run.first << shape.shift))
        tables = lower


def _tell(scene: Scene, form: PagingForm, level: int, table: _Table, upper: dict[int, int]) -> int:
    """Tell what is wrong with a table's entries; how many runs of them are."""
    shown = 0
    for run in table.runs:
        if run.flags & _RESERVED:
            _reserved(scene, form, _Seen(level, table.gpa, _gva(form, level, table, run), run, table.data))
        elif not run.flags & _LEAF and upper.get(run.gpa, 0) >= level:
            seen = _Seen(level, table.gpa, _gva(form, level, table, run), run, table.data)
            _self_map(scene, form, seen, upper[run.gpa])
        else:
            continue
        shown += 1
    return shown


def _gva(form: PagingForm, level: int, table: _Table, run: TableRun) -> int:
    """The first address that a run of entries translates, canonical."""
    gva = table.gva + (run.first << decoder_for(form).levels[level].shift)
    if form.mode.long and gva >> 11 + 9 * form.levels:
        gva |= (1 << 64) - (1 << 12 + 9 * form.levels)
    return gva


def _reserved(scene: Scene, form: PagingForm, seen: _Seen) -> None:
    if scene.findings.counted(RESERVED):
        count = seen.run.nentries
        what = "an entry has" if count == 1 else f"{count} entries have"
        told = f"{what} reserved bits set, in a table of level {seen.level}"
        scene.findings.add(RESERVED, told, _place(form, seen))


def _self_map(scene: Scene, form: PagingForm, seen: _Seen, level: int) -> None:
    if scene.findings.counted(SELF_MAP):
        who = "itself" if seen.run.gpa == seen.gpa else f"that at gpa 0x{seen.run.gpa:x}"
        told = f"an entry of the table of level {seen.level} at gpa 0x{seen.gpa:x} leads to {who}, of level {level}"
        scene.findings.add(SELF_MAP, told, _place(form, seen))


def _place(form: PagingForm, seen: _Seen) -> Place:
    """What the entries would map."""
    shape = decoder_for(form).levels[seen.level]
    width = len(seen.table) // shape.nentries
    raw = int.from_bytes(seen.table[seen.run.first * width : (seen.run.first + 1) * width], "little")
    entry = Entry(seen.level, seen.gpa, seen.run.first, raw)
    return Place(seen.gva, None, seen.run.nentries << shape.shift, (form.root_gpa,), (entry,))


def _unreadable(scene: Scene) -> None:
    found = scene.pages.scan
    assert found is not None
    where = {(table.level, table.gpa): (table.gva, view) for table, view in scene.unreadable}
    for table in found.unreadable:
        if scene.findings.counted(UNREADABLE):
            told = f"the table of level {table.level} at gpa 0x{table.gpa:x} cannot be read"
            place = Place(None, table.gpa, PAGE_NBYTES)
            if (table.level, table.gpa) in where:
                gva, view = where[table.level, table.gpa]
                told += f": what it maps from gva 0x{gva:x} on is not known"
                place = Place(None, table.gpa, PAGE_NBYTES, view.roots, _leading(scene, view, gva))
            scene.findings.add(UNREADABLE, told, place)
    if found.unreadable_count:
        scene.findings.cut(f"{found.unreadable_count} page tables cannot be read")
    for limit in found.limits_hit:
        scene.findings.cut(f"the guest has more {_LIMITS[limit]} than are looked at")


def _leading(scene: Scene, view: View, gva: int) -> tuple[Entry, ...]:
    """The entries that lead to where a walk ends."""
    return scene.place(view, gva, 0).entries


_LIMITS: Final = {
    "tables": "page tables of one level",
    "spans": "distinct ranges of mapped memory",
    "unreadable": "unreadable page tables",
}
