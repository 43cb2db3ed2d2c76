"""Classifying RAM: what the tables say, page by page, against a plain list of pages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sevkvm.memory.source import Slot, SlotMap
from sevkvm.pages.classify import PageKind, PageMap, classify, uniform
from sevkvm.paging.form import PagingForm, PagingMode
from sevkvm.paging.scan import Limits
from tests.support.tables import KIB4, MIB2, P, Tables

if TYPE_CHECKING:
    from collections.abc import Sequence

MIB1 = 1 << 20


def slots(*ranges: tuple[int, int]) -> SlotMap:
    return SlotMap(Slot(gpa, nbytes, 0x7F00_0000_0000 + gpa) for gpa, nbytes in ranges)


def direct_map(levels: int = 4, cbit: int = 51, nbytes: int = 16 * MIB1) -> Tables:
    """A direct map of private 2 MiB pages, its tables at 1 MiB."""
    tables = Tables(levels, cbit, next_gpa=MIB1)
    for gpa in range(0, nbytes, MIB2):
        tables.map(0xFFFF_8880_0000_0000 + gpa, gpa, MIB2)
    return tables


def map_of(tables: Tables, *ranges: tuple[int, int]) -> PageMap:
    return classify(tables.reader(), [tables.form], slots(*ranges))


@pytest.mark.parametrize("levels", [4, 5])
@pytest.mark.parametrize("cbit", [32, 47, 51])
def test_a_huge_page_split_by_a_shared_one(levels: int, cbit: int) -> None:
    tables = Tables(levels, cbit, next_gpa=64 * MIB1)
    base = 0xFFFF_8880_0000_0000
    tables.map(base, 0, MIB2)
    for page in range(512):
        tables.map(base + MIB2 + page * KIB4, MIB2 + page * KIB4, private=page != 7)
    pages = map_of(tables, (0, 3 * MIB2))
    assert [tuple(run) for run in pages.runs()] == [
        (0, MIB2 + 7 * KIB4, True, "private"),
        (MIB2 + 7 * KIB4, KIB4, False, "shared"),
        (MIB2 + 8 * KIB4, 504 * KIB4, True, "private"),
        (2 * MIB2, MIB2, True, "unmapped"),
    ]
    assert [pages.is_private(gpa) for gpa in (0, MIB2 + 7 * KIB4, MIB2 + 8 * KIB4 - 1)] == [
        True,
        False,
        False,
    ]
    assert not pages.is_private(2 * MIB2, default_private=False)
    assert pages.conflicts == []


def test_a_page_mapped_both_ways_is_private_and_told() -> None:
    tables = direct_map()
    tables.map(0x40_0000, 3 * MIB2, KIB4, private=False)
    tables.map(0x40_1000, 3 * MIB2 + KIB4, KIB4, private=False)
    pages = map_of(tables, (0, 16 * MIB1))
    assert pages.conflicts == [(3 * MIB2, 2 * KIB4)]
    assert pages.kind(3 * MIB2) is PageKind.CONFLICT
    assert pages.is_private(3 * MIB2)


def test_page_tables_are_private_whoever_maps_them_how() -> None:
    tables = direct_map(nbytes=2 * MIB1)
    tables.map(0x40_0000, tables.root, KIB4, private=False)
    pages = map_of(tables, (0, 16 * MIB1))
    assert all(pages.kind(gpa) is PageKind.TABLE and pages.is_private(gpa) for gpa in tables.pages)
    assert pages.conflicts == [(tables.root, KIB4)]
    assert pages.totals()[PageKind.TABLE] == len(tables.pages) * KIB4


def test_only_ram_is_classified() -> None:
    tables = direct_map()
    tables.map(0x40_0000, 0xFEE0_0000, KIB4, private=False)
    pages = map_of(tables, (0, 0xA0000), (MIB1, 3 * MIB1))
    runs = list(pages.runs())
    assert sum(run.nbytes for run in runs) == 0xA0000 + 3 * MIB1
    assert pages.kind(0xA0000) is None
    assert pages.kind(0xFEE0_0000) is None
    assert [tuple(run)[:2] for run in pages.runs(0x9F000, MIB1 + 0x800)] == [
        (0x9F000, 0x1000),
        (MIB1, 0x800),
    ]
    assert list(pages.runs(0xA0000, MIB1)) == []
    assert list(pages.runs(5 * MIB1, 6 * MIB1)) == []


def test_extents_merge_what_is_read_alike() -> None:
    tables = direct_map(nbytes=4 * MIB1)
    tables.map(0x40_0000, 8 * MIB1, KIB4, private=False)
    pages = map_of(tables, (0, 16 * MIB1))
    assert list(pages.extents()) == [
        (0, 8 * MIB1, True),
        (8 * MIB1, KIB4, False),
        (8 * MIB1 + KIB4, 8 * MIB1 - KIB4, True),
    ]
    assert list(pages.extents(default_private=False)) == [
        (0, 4 * MIB1, True),
        (4 * MIB1, 12 * MIB1, False),
    ]


def test_a_guest_without_encryption_is_plain_and_not_scanned() -> None:
    reader = direct_map().reader()
    pages = classify(reader, [PagingForm(PagingMode.LEVEL4, MIB1, None)], slots((0, MIB1), (MIB1, MIB1)))
    assert [tuple(run) for run in pages.runs()] == [(0, 2 * MIB1, False, "plain")]
    assert pages.scan is None
    assert not reader.fetched


def test_without_tables_all_is_unmapped() -> None:
    pages = uniform(slots((0, MIB1)), PageKind.UNMAPPED)
    assert [tuple(run) for run in pages.runs()] == [(0, MIB1, True, "unmapped")]
    with pytest.raises(ValueError, match="no page tables"):
        classify(Tables().reader(), [], slots((0, MIB1)))


def test_all_roots_count() -> None:
    tables = direct_map(nbytes=2 * MIB1)
    other = Tables(4, 51, next_gpa=8 * MIB1)
    other.map(0x1000, 4 * MIB1, private=False)
    reader = tables.reader()
    reader.pages.update(other.reader().pages)
    pages = classify(reader, [tables.form, other.form], slots((0, 16 * MIB1)))
    assert pages.kind(0) is PageKind.PRIVATE
    assert pages.kind(4 * MIB1) is PageKind.SHARED
    assert pages.kind(other.root) is PageKind.TABLE
    assert set(reader.fetched.values()) == {1}


@dataclass
class SparseReader:
    """16 GiB mapped by 4 KiB pages, tables from 256 GiB on, made when they are asked for."""

    cbit: int
    fetched: int = 0

    def read_tables(self, gpas: Sequence[int], *, keep: bool = True) -> list[bytes | None]:
        self.fetched += len(gpas)
        return [self.table(gpa) for gpa in gpas]

    def table(self, gpa: int) -> bytes:
        number = gpa >> 12
        if number == 1 << 26:  # root at 256 GiB; PDs and PTs behind it
            first, step, count = (1 << 26) + 1, 1, 1
        elif number == (1 << 26) + 1:
            first, step, count = (1 << 26) + 2, 1, 16
        elif number < (1 << 26) + 2 + 16:
            first, step, count = (1 << 26) + 1024 + (number - (1 << 26) - 2) * 512, 1, 512
        else:
            first, step, count = (number - (1 << 26) - 1024) * 512, 1, 512
        entry = 1 << self.cbit | P
        body = b"".join(((first + i * step) << 12 | entry).to_bytes(8, "little") for i in range(count))
        return body.ljust(4096, b"\0")


def test_a_large_guest_costs_its_tables_and_nothing_more() -> None:
    reader = SparseReader(51)
    form = PagingForm(PagingMode.LEVEL4, (1 << 26) << 12, 51)
    pages = classify(reader, [form], slots((0, 1 << 40)), Limits())
    assert reader.fetched == 1 + 1 + 16 + 16 * 512
    mapped = 16 << 30
    assert [tuple(run) for run in pages.runs(0, mapped + MIB1)] == [
        (0, mapped, True, "private"),
        (mapped, MIB1, True, "unmapped"),
    ]
    kinds = [run.kind for run in pages.runs()]
    assert kinds == ["private", "unmapped", "table", "unmapped", "table", "unmapped"]


@settings(max_examples=80, deadline=None)
@given(
    mappings=st.lists(
        st.tuples(st.integers(0, 63), st.integers(0, 63), st.booleans()),
        max_size=60,
        unique_by=lambda m: m[0],
    ),
    ram=st.sets(st.integers(0, 47), min_size=1),
)
def test_the_map_equals_the_truth_page_by_page(mappings: list[tuple[int, int, bool]], ram: set[int]) -> None:
    tables = Tables(4, 47, next_gpa=40 * KIB4)
    ways: dict[int, set[bool]] = {}
    for virtual, frame, private in mappings:
        tables.map(virtual * KIB4, frame * KIB4, private=private)
        ways.setdefault(frame, set()).add(private)
    pages = map_of(tables, *((frame * KIB4, KIB4) for frame in ram))
    kinds = {
        frozenset(): "unmapped",
        frozenset({True}): "private",
        frozenset({False}): "shared",
        frozenset({True, False}): "conflict",
    }
    truth = {}
    for frame in ram:
        kind = "table" if frame * KIB4 in tables.pages else kinds[frozenset(ways.get(frame, ()))]
        truth[frame] = (kind, kind != "shared")
    found = {
        frame: (run.kind, run.private)
        for run in pages.runs()
        for frame in range(run.gpa // KIB4, (run.gpa + run.nbytes) // KIB4)
    }
    assert found == truth
    assert all(pages.is_private(frame * KIB4 + 5) == truth[frame][1] for frame in ram)
    both = {frame for frame in ram if len(ways.get(frame, ())) == 2}
    assert {f for gpa, n in pages.conflicts for f in range(gpa // KIB4, (gpa + n) // KIB4)} == both
