"""Scanning address spaces: each distinct table once, distinct leaves merged, hostile tables bounded."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from sevkvm.native import EntryFlag
from sevkvm.paging.form import PagingForm, PagingMode
from sevkvm.paging.scan import Limits, UnreadableTable, leaves
from tests.support.tables import GIB1, KIB4, MIB2, NX, PS, RW, P, Tables

PRIVATE = EntryFlag.PRIVATE


def test_leaves_of_all_sizes_and_counts() -> None:
    tables = Tables(5, 51)
    tables.map(0xFF11_0000_0000_0000, 0, GIB1)
    tables.map(0xFF11_0000_4000_0000, GIB1, MIB2)
    tables.map(0xFF11_0000_4020_0000, GIB1 + MIB2, KIB4)
    tables.map(0x1000, 3 * GIB1, KIB4, private=False)
    reader = tables.reader()
    found = leaves(reader, [tables.form])
    assert [tuple(span) for span in found.spans()] == [
        (3 * GIB1, KIB4, 0),
        (0, GIB1 + MIB2 + KIB4, PRIVATE),
    ]
    assert list(found.ranges(True)) == [(0, GIB1 + MIB2 + KIB4)]
    assert list(found.ranges(False)) == [(3 * GIB1, 3 * GIB1 + KIB4)]
    assert found.tables_by_level == {5: 1, 4: 2, 3: 2, 2: 2, 1: 2}
    assert found.pages_by_level == {1: 2, 2: 1, 3: 1}
    assert list(found.table_gpas) == sorted(tables.pages)
    assert set(reader.fetched.values()) == {1}
    assert (found.limits_hit, found.unreadable, found.unreadable_count, found.reserved) == ((), [], 0, 0)


def test_flags_are_told_apart_on_request() -> None:
    tables = Tables(4, 47)
    tables.map(0x1000, 0x1000, writable=True)
    tables.map(0x2000, 0x2000, writable=False, nx=True)
    together = leaves(tables.reader(), [tables.form])
    assert [tuple(span) for span in together.spans()] == [(0x1000, 0x2000, PRIVATE)]
    apart = leaves(tables.reader(), [tables.form], tell_apart=EntryFlag.WRITABLE | EntryFlag.NX | PRIVATE)
    assert [tuple(span) for span in apart.spans()] == [
        (0x1000, 0x1000, EntryFlag.WRITABLE | PRIVATE),
        (0x2000, 0x1000, EntryFlag.NX | PRIVATE),
    ]


def test_shared_tables_cost_once_for_all_roots() -> None:
    tables = Tables(4, 47)
    tables.map(0xFFFF_8880_0000_0000, 0, GIB1)
    second = tables.new_table()
    tables.pages[second] = list(tables.pages[tables.root])
    tables.pages[second][0] = tables.pages[tables.root][273]
    reader = tables.reader()
    found = leaves(reader, [tables.form, PagingForm(PagingMode.LEVEL4, second, 47), tables.form])
    assert found.tables_by_level[4] == 2
    assert found.tables_by_level[3] == 1
    assert set(reader.fetched.values()) == {1}
    assert list(found.ranges(True)) == [(0, GIB1)]


def test_four_and_five_level_roots_share_too() -> None:
    tables = Tables(4, 47)
    tables.map(0x1000, 0x5000)
    top = tables.new_table()
    tables.pages[top][0] = tables.root | P | RW | tables.mask
    reader = tables.reader()
    found = leaves(reader, [tables.form, PagingForm(PagingMode.LEVEL5, top, 47)])
    assert found.tables_by_level == {5: 1, 4: 1, 3: 1, 2: 1, 1: 1}
    assert set(reader.fetched.values()) == {1}


def test_reserved_bits_map_nothing() -> None:
    tables = Tables(4, 47)
    tables.set_entry(0, 1, 0x5000 | P | NX)
    tables.set_entry(MIB2, 2, 0x5000 | P | PS | tables.mask)
    assert (
        list(leaves(tables.reader(), [PagingForm(PagingMode.LEVEL4, tables.root, 47, nx=False)]).spans())
        == []
    )
    found = leaves(tables.reader(), [tables.form])
    assert found.reserved == 1
    assert list(found.ranges(False)) == [(0x5000, 0x6000)]


def test_unreadable_tables_are_listed_and_counted() -> None:
    tables = Tables(4, 47)
    tables.map(0x1000, 0x5000)
    for index in range(1, 21):
        tables.set_entry(index * MIB2, 2, 0xFEE0_0000 + index * 0x1000 | P | tables.mask)
    found = leaves(tables.reader(), [tables.form], limits=Limits(unreadable=4))
    assert found.unreadable == [UnreadableTable(1, 0xFEE0_0000 + index * 0x1000) for index in range(1, 5)]
    assert found.unreadable_count == 20
    assert found.limits_hit == ("unreadable",)
    assert list(found.ranges(True)) == [(0x5000, 0x6000)]


def test_an_unreadable_root() -> None:
    found = leaves(Tables().reader(), [PagingForm(PagingMode.LEVEL4, 0xFEE0_0000, 47)])
    assert found.unreadable == [UnreadableTable(4, 0xFEE0_0000)]
    assert list(found.spans()) == []


def test_a_page_table_bomb() -> None:
    """One page, 512**4 leaves: four tables (the same page at four levels), one leaf."""
    tables = Tables(4, 47)
    tables.pages[tables.root] = [tables.root | P | RW | tables.mask] * 512
    reader = tables.reader()
    found = leaves(reader, [tables.form])
    assert reader.fetched.total() == 4
    assert found.tables_by_level == {4: 1, 3: 1, 2: 1, 1: 1}
    assert list(found.ranges(True)) == [(tables.root, tables.root + KIB4)]
    assert list(found.table_gpas) == [tables.root]


def test_a_self_map() -> None:
    tables = Tables(4, 47)
    tables.map(0x1000, 0x5000)
    tables.pages[tables.root][300] = tables.root | P | RW | tables.mask
    found = leaves(tables.reader(), [tables.form])
    mapped = {gpa for gpa, end in found.ranges(True) for gpa in range(gpa, end, KIB4)}
    assert mapped == {*tables.pages, 0x5000}


def test_a_guest_that_wants_our_memory() -> None:
    """Distinct tables everywhere, none of which exists: cut at the limits, and said so."""
    tables = Tables(4, 47)
    tables.set_entry(0, 4, tables.new_table() | P | tables.mask)
    for index in range(512):
        directory = tables.new_table()
        tables.set_entry(index * GIB1, 3, directory | P | tables.mask)
        tables.pages[directory] = [(index * 512 + i) * 0x2000 + (1 << 36) | P for i in range(512)]
    found = leaves(tables.reader(), [tables.form], limits=Limits(tables=4096))
    assert found.limits_hit == ("tables", "unreadable")
    assert 2048 <= found.unreadable_count <= 4096
    assert len(found.unreadable) == 1024


def test_a_guest_that_fragments_its_memory() -> None:
    tables = Tables(4, 47)
    for page in range(5000):
        tables.map(page * KIB4, page * 2 * KIB4)
    found = leaves(tables.reader(), [tables.form], limits=Limits(spans=4096))
    assert found.limits_hit == ("spans",)
    kept = list(found.ranges(True))
    assert 2048 <= len(kept) <= 4096
    assert kept == [(page * 2 * KIB4, page * 2 * KIB4 + KIB4) for page in range(len(kept))]


def test_paging_off_has_no_tables() -> None:
    reader = Tables().reader()
    assert list(leaves(reader, [PagingForm(PagingMode.OFF, 0, 47)]).spans()) == []
    assert not reader.fetched


def test_many_tables_come_in_batches() -> None:
    tables = Tables(4, 47)
    for table in range(1000):
        tables.map(table * MIB2, table * KIB4)
    reader = tables.reader()
    found = leaves(reader, [tables.form])
    assert set(reader.fetched.values()) == {1}
    assert reader.batches == 3 + 4
    assert list(found.ranges(True)) == [(0, 1000 * KIB4)]


@settings(max_examples=60, deadline=None)
@given(
    entries=st.lists(st.integers(0, (1 << 64) - 1), min_size=1, max_size=64),
    links=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 511), st.integers(0, 7)), max_size=40),
    levels=st.sampled_from([4, 5]),
)
def test_noise_ends(entries: list[int], links: list[tuple[int, int, int]], levels: int) -> None:
    tables = Tables(levels, 47, next_gpa=0)
    gpas = [tables.root, *(tables.new_table() for _ in range(5))]
    for number, gpa in enumerate(gpas):
        tables.pages[gpa] = [entries[(i * 7 + number) % len(entries)] for i in range(512)]
    for table, index, target in links:
        tables.pages[gpas[table]][index] = target * 0x1000 | P
    reader = tables.reader()
    found = leaves(reader, [tables.form])
    assert all(count <= levels for count in reader.fetched.values())
    for private in (True, False):
        ranges = list(found.ranges(private))
        assert ranges == sorted(ranges)
        assert all(low[1] < high[0] for low, high in itertools.pairwise(ranges))
