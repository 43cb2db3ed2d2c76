"""Which pages of a guest's memory its own page tables map as private (C-bit set), shared, or both.

The rule. A page table is private, whoever maps it how: the processor reads it so. Any other page that is mapped both
ways, anywhere, is a conflict; it is read as the kernel's direct map has it, since the kernel keeps that right for each
page it shares, and as private where the direct map does not have it (or there is none).

Interval arithmetic on runs: cost follows the number of tables and of distinct runs, not the number of pages.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from sevkvm.abi import x86
from sevkvm.pages.directmap import DirectMap, find_direct_map
from sevkvm.pages.pagemap import PageKind, PageMap, PageRun
from sevkvm.pages.ranges import append, sweep
from sevkvm.pages.window import Kept, Split
from sevkvm.paging import scan

if TYPE_CHECKING:
    from sevkvm.memory.source import SlotMap
    from sevkvm.pages.pagemap import Stretch
    from sevkvm.paging.fetch import TableReader
    from sevkvm.paging.form import PagingForm

__all__ = ["DirectMap", "PageKind", "PageMap", "PageRun", "classify", "uniform"]

_RAM, _DIRECT1, _DIRECT0, _OTHER1, _OTHER0, _TABLE = 1, 2, 4, 8, 16, 32
_PRIVATE, _SHARED = _DIRECT1 | _OTHER1, _DIRECT0 | _OTHER0
_UNIFORM = {PageKind.PLAIN: False, PageKind.SHARED: False, PageKind.PRIVATE: True}


def uniform(slots: SlotMap, kind: PageKind) -> PageMap:
    """All RAM of one kind: PLAIN for a guest without encryption, UNMAPPED where no tables can be found."""
    return PageMap((slot.gpa, slot.end, kind, _UNIFORM.get(kind)) for slot in slots)


def classify(
    reader: TableReader,
    forms: Sequence[PagingForm],
    slots: SlotMap,
    limits: scan.Limits | None = None,
    *,
    plain_tables: bool = False,
    reading: Callable[[int], None] = lambda count: None,
) -> PageMap:
    """Scan the tables of all ``forms`` (every vCPU's) and classify the RAM in ``slots``.

    A guest none of whose forms has a C-bit is PLAIN; nothing is read then, unless ``plain_tables`` asks for its page
    tables and for what is not mapped. ``reading`` is told how many tables have been read so far. ValueError without
    any form: use :func:`uniform`.
    """
    if not forms:
        raise ValueError("no page tables to classify by")
    plain = all(form.cbit_pos is None for form in forms)
    if plain and not plain_tables:
        return uniform(slots, PageKind.PLAIN)
    kept = Kept(reader, reading)
    spaces = _spaces(kept, forms, slots)
    split = Split(kept, spaces)
    kept.keeping = False
    direct = scan.leaves(split.inside, [form for form, window in spaces if window], limits=limits)
    other = scan.leaves(split.outside, [form for form, _ in spaces], limits=limits)
    found = _joined(direct, other, split.edges)
    layers = (
        (_RAM, ((slot.gpa, slot.end) for slot in slots)),
        (_DIRECT1, direct.ranges(True)),
        (_DIRECT0, direct.ranges(False)),
        (_OTHER1, other.ranges(True)),
        (_OTHER0, other.ranges(False)),
        (_TABLE, ((gpa, gpa + x86.PAGE_NBYTES) for gpa in found.table_gpas)),
    )
    conflicts: list[tuple[int, int]] = []

    def stretches() -> Iterator[Stretch]:
        for gpa, end, mask in sweep(layers):
            if not mask & _RAM:
                continue
            if mask & _PRIVATE and mask & _SHARED:
                append(conflicts, gpa, end)
            yield (gpa, end, *(_plain(mask) if plain else _told(mask)))

    pages = PageMap(stretches())
    pages.conflicts = conflicts
    pages.scan = found
    pages.forms = tuple(form for form, _ in spaces)
    pages.direct_maps = tuple(dict.fromkeys(window for _, window in spaces if window))
    return pages


def _told(mask: int) -> tuple[PageKind, bool | None]:
    """The kind of a page of an encrypted guest, and how it is read."""
    if mask & _TABLE:
        return PageKind.TABLE, True
    if mask & _PRIVATE and mask & _SHARED:
        return PageKind.CONFLICT, mask & (_DIRECT1 | _DIRECT0) != _DIRECT0
    if mask & _PRIVATE:
        return PageKind.PRIVATE, True
    if mask & _SHARED:
        return PageKind.SHARED, False
    return PageKind.UNMAPPED, None


def _plain(mask: int) -> tuple[PageKind, bool | None]:
    if mask & _TABLE:
        return PageKind.TABLE, False
    return (PageKind.PLAIN if mask & _SHARED else PageKind.UNMAPPED), False


def _spaces(
    reader: TableReader, forms: Sequence[PagingForm], slots: SlotMap
) -> list[tuple[PagingForm, DirectMap | None]]:
    """Each address space with its direct map.

    A vCPU that was stopped in user mode may be on tables that leave the kernel out; the whole ones then lie a page
    below, and are believed if they have a direct map. Source: Linux arch/x86/entry/calling.h (PTI_USER_PGTABLE_BIT).
    """
    found: dict[PagingForm, DirectMap | None] = {}
    known: dict[DirectMap, None] = {}
    for form in forms:
        window = found[form] = find_direct_map(reader, form, slots, list(known))
        if window is None and form.mode.long and form.root_gpa & x86.PAGE_NBYTES:
            form = replace(form, root_gpa=form.root_gpa - x86.PAGE_NBYTES)
            window = find_direct_map(reader, form, slots, list(known))
            if window is not None:
                found[form] = window
        if window is not None:
            known[window] = None
    return list(found.items())


def _joined(direct: scan.ScanResult, other: scan.ScanResult, edges: Mapping[int, int]) -> scan.ScanResult:
    """What both scans met. The tables at the window's edges, which both have read, count once by level.

    It has no spans: they would not tell what the direct map says.
    """
    both = set(direct.table_gpas).intersection(other.table_gpas)
    twice = Counter(level for gpa, level in edges.items() if gpa in both)
    return scan.ScanResult(
        _sums(direct.tables_by_level, other.tables_by_level, twice),
        _sums(direct.pages_by_level, other.pages_by_level, {}),
        direct.reserved + other.reserved,
        array("Q", sorted({*direct.table_gpas, *other.table_gpas})),
        list(dict.fromkeys([*direct.unreadable, *other.unreadable])),
        direct.unreadable_count + other.unreadable_count,
        tuple(dict.fromkeys([*direct.limits_hit, *other.limits_hit])),
    )


def _sums(one: Mapping[int, int], two: Mapping[int, int], less: Mapping[int, int]) -> dict[int, int]:
    levels = sorted({*one, *two}, reverse=True)
    return {level: one.get(level, 0) + two.get(level, 0) - less.get(level, 0) for level in levels}
