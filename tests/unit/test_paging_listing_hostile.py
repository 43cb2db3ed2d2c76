"""Listings of hostile and of huge tables: what is fetched, how much is done, where it ends."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest

from sevkvm.native import EntryFlag
from sevkvm.paging.engine import Engine, Kind, State
from sevkvm.paging.form import PagingForm, PagingMode
from sevkvm.paging.listing import Listing, ListLimits, Run
from tests.support.tables import GIB1, KIB4, MIB2, NX, PS, RW, TABLE, US, P, Tables

W, U, PRIVATE = int(EntryFlag.WRITABLE), int(EntryFlag.USER), int(EntryFlag.PRIVATE)
TIB128 = 1 << 47
UPPER = (1 << 64) - TIB128


def bomb(entry: int = P | RW | US) -> Tables:
    """One page that leads to itself 512 times, at all four levels: 512**4 leaves."""
    tables = Tables(4, 47)
    tables.pages[tables.root] = [tables.root | entry | tables.mask] * 512
    return tables


def steps(tables: Tables, kind: Kind) -> int:
    """How many steps of the engine a listing takes, fetching apart."""
    reader = tables.reader()
    with Engine(
        kind, tables.form, [(0, 1 << 64)], tell_apart=0, cache_pages=64, summaries=64, unreadable=1
    ) as engine:
        for number in itertools.count(1):
            state, _ = engine.step()
            if state == State.DONE:
                return number
            if state == State.TABLES:
                engine.supply(reader.read_tables(engine.wanted()))
    raise AssertionError


def test_a_bomb_is_two_runs_at_once() -> None:
    tables = bomb()
    reader = tables.reader()
    listing = Listing(reader, tables.form)
    assert list(listing.runs()) == [Run(0, TIB128, W | U), Run(UPPER, TIB128, W | U)]
    assert listing.report.leaves == 512**4
    assert listing.report.tables == 1
    assert reader.fetched.total() == 1
    assert steps(tables, Kind.RUNS) == 2  # before and after the one page is fetched
    assert b"".join(listing.runs_text()) == b"0000000000000000-0001000000000000 0001000000000000 urw\n"


@pytest.mark.parametrize("levels", [4, 5])
def test_a_bomb_behind_ranges(levels: int) -> None:
    tables = Tables(levels)
    tables.pages[tables.root] = [tables.root | P | RW] * 512
    ranges = [(0x1234, 0x5678), (UPPER + 0x1800, UPPER + 2 * GIB1), (77 * GIB1 + 1, 700 * GIB1)]
    listing = Listing(tables.reader(), tables.form, ranges=ranges)
    assert list(listing.runs()) == [Run(start, end - start, W) for start, end in sorted(ranges)]


def test_the_leaves_of_a_bomb_stream_and_can_be_cut() -> None:
    tables = bomb()
    reader = tables.reader()
    listing = Listing(reader, tables.form)
    leaves = listing.leaves()
    assert [leaf.gva for leaf in itertools.islice(leaves, 10_000)] == list(range(0, 10_000 * KIB4, KIB4))
    assert reader.fetched.total() == 1
    leaves.close()  # type: ignore[attr-defined]  # a generator
    assert 10_000 <= listing.report.leaves < 20_000
    text = b"".join(itertools.islice(listing.leaves_text(), 4))
    assert text.endswith(b"\n")
    assert 4 * 60_000 < len(text) <= 4 * 65_536


def test_a_bomb_with_a_hole_in_it_streams() -> None:
    tables = bomb()
    tables.pages[tables.root][0] = 0
    listing = Listing(tables.reader(), tables.form)
    runs = list(itertools.islice(listing.runs(), 1000))
    first = GIB1 * 512 + GIB1 + MIB2 + KIB4
    assert runs[0] == Run(first, 511 * KIB4, W | U)
    assert runs[1] == Run(first + 512 * KIB4, 511 * KIB4, W | U)
    assert len(runs) == 1000


def test_a_bomb_of_nothing() -> None:
    """512**3 page tables, all the same and empty."""
    tables = Tables(4, 47)
    empty = tables.new_table()
    below = empty
    for _ in range(2):
        above = tables.new_table()
        tables.pages[above] = [below | P | tables.mask] * 512
        below = above
    tables.pages[tables.root] = [below | P | tables.mask] * 512
    reader = tables.reader()
    listing = Listing(reader, tables.form)
    assert not list(listing.leaves())
    assert not list(listing.runs())
    assert reader.fetched.total() == 2 * 4
    assert listing.report.tables_by_level == {4: 1, 3: 1, 2: 1, 1: 1}
    assert steps(tables, Kind.LEAVES) <= 4 + 1


@pytest.mark.parametrize("last", ["unreadable", "reserved"])
def test_a_bomb_of_what_cannot_be(last: str) -> None:
    tables = Tables(4, 47)
    directory, middle = tables.new_table(), tables.new_table()
    bad = 0xFEE0_0000 | P | tables.mask if last == "unreadable" else 0x5000 | P | PS
    tables.pages[directory] = [bad] * 512
    tables.pages[middle] = [directory | P | tables.mask] * 512
    tables.pages[tables.root] = [middle | P | tables.mask] * 512
    listing = Listing(tables.reader(), tables.form)
    assert not list(listing.leaves())
    if last == "unreadable":
        assert listing.report.unreadable == [(1, 0xFEE0_0000, 0)]
        assert listing.report.unreadable_count == 1
    else:
        assert listing.report.reserved == 512
    assert listing.report.limits_hit == ()


def test_rights_that_upper_entries_take_make_a_subtree_one_run() -> None:
    """A table of mixed rights is mixed only where it is seen through an entry that has them."""
    tables = Tables(4)
    mixed, directory = tables.new_table(), tables.new_table()
    tables.pages[mixed] = [i << 12 | P | (RW if i % 2 else 0) for i in range(512)]
    tables.pages[directory] = [mixed | P | RW] * 512
    tables.set_entry(0, 3, directory | P | RW)
    tables.set_entry(GIB1, 3, directory | P)
    found = list(Listing(tables.reader(), tables.form).runs())
    assert found[-1] == Run(GIB1, GIB1, 0)
    assert found[-2] == Run(GIB1 - KIB4, KIB4, W)
    assert len(found) == 512 * 512 + 1


def test_what_is_remembered_of_a_subtree_knows_the_rights_inside_it() -> None:
    """Pages are writable, but not through the directory; the second time nothing is walked."""
    tables = Tables(4)
    table, directory = tables.new_table(), tables.new_table()
    tables.pages[table] = [i << 12 | P | RW | US for i in range(512)]
    tables.pages[directory] = [table | P | US | NX] * 512
    for index in range(3):
        tables.set_entry(index * GIB1, 3, directory | P | RW | US)
    found = list(Listing(tables.reader(), tables.form).runs(W | U | int(EntryFlag.NX)))
    assert found == [Run(0, 3 * GIB1, U | int(EntryFlag.NX))]


def test_unreadable_tables_are_listed_up_to_a_limit() -> None:
    tables = Tables(4, 47)
    for index in range(20):
        tables.set_entry(index * MIB2, 2, 0xFEE0_0000 + index * KIB4 | P | tables.mask)
    listing = Listing(tables.reader(), tables.form, limits=ListLimits(unreadable=4))
    assert not list(listing.leaves())
    assert [table.gva for table in listing.report.unreadable] == [0, MIB2, 2 * MIB2, 3 * MIB2]
    assert listing.report.unreadable_count == 20
    assert listing.report.limits_hit == ("unreadable",)


def test_an_unreadable_root() -> None:
    listing = Listing(Tables().reader(), PagingForm(PagingMode.LEVEL4, 0xFEE0_0000))
    assert not list(listing.runs())
    assert listing.report.unreadable == [(4, 0xFEE0_0000, 0)]


def test_what_is_reserved_is_counted_once_and_maps_nothing() -> None:
    tables = Tables(4, 47)
    tables.map(0x1000, 0x5000)
    tables.set_entry(MIB2, 2, 0x5000 | P | PS)
    tables.set_entry(2 * MIB2, 2, tables.get_entry(0, 2))
    tables.set_entry(GIB1, 3, tables.get_entry(0, 3))
    listing = Listing(tables.reader(), tables.form)
    assert [leaf.gva for leaf in listing.leaves()] == [0x1000, 0x401000, 0x4000_1000, 0x4040_1000]
    assert listing.report.reserved == 1


def test_a_self_map() -> None:
    tables = Tables(4, 47)
    tables.map(0x1000, 0x5000)
    tables.pages[tables.root][300] = tables.root | P | RW | tables.mask
    reader = tables.reader()
    leaves = list(Listing(reader, tables.form).leaves())
    assert set(reader.fetched.values()) == {1}
    seen = {leaf.gpa for leaf in leaves}
    assert seen == {*tables.pages, 0x5000}
    recursive = UPPER + (300 - 256 << 39 | 300 << 30 | 300 << 21 | 300 << 12)
    assert [leaf.gva for leaf in leaves if leaf.gpa == tables.root][-1] == recursive


@dataclass
class Sparse:
    """``nbytes`` of memory mapped at 0 by 4 KiB pages, tables made when they are asked for."""

    nbytes: int
    fetched: int = 0
    batches: int = 0
    root: int = 1 << 45

    def read_tables(self, gpas: Sequence[int], *, keep: bool = True) -> list[bytes | None]:
        assert not keep
        self.fetched += len(gpas)
        self.batches += 1
        return [self.table(gpa) for gpa in gpas]

    def table(self, gpa: int) -> bytes:
        level, number = 4 - (gpa - self.root >> 36), (gpa - self.root) % (1 << 36) >> 12
        below = self.root + (5 - level << 36) if level > 1 else 0
        count = min(512, self.nbytes // (512 ** (level - 1) * KIB4) - number * 512) or 1
        first = number * 512
        return TABLE.pack(
            *((below + (first + i) * KIB4 | P | RW) for i in range(count)), *[0] * (512 - count)
        )

    @property
    def form(self) -> PagingForm:
        return PagingForm(PagingMode.LEVEL4, self.root)


def test_tables_come_in_few_batches_and_once_each() -> None:
    guest = Sparse(4 * GIB1)
    listing = Listing(guest, guest.form)
    assert list(listing.runs()) == [Run(0, 4 * GIB1, W)]
    assert listing.report.tables_by_level == {4: 1, 3: 1, 2: 4, 1: 4 * 512}
    assert listing.report.tables == guest.fetched == 1 + 1 + 4 + 4 * 512
    assert guest.batches == 3 + 4 * 512 // 256


def test_the_first_leaf_comes_before_the_last_table() -> None:
    guest = Sparse(4 * GIB1)
    listing = Listing(guest, guest.form)
    leaves = listing.leaves()
    next(leaves)
    assert guest.fetched == 1 + 1 + 4 + 256
    text = listing.leaves_text()
    assert next(text).startswith(b"0000000000000000: 0000000000000000 --------W\n")
    assert guest.fetched == 2 * (1 + 1 + 4 + 256)


def test_a_range_fetches_its_own_tables_only() -> None:
    guest = Sparse(4 * GIB1)
    listing = Listing(guest, guest.form, ranges=[(GIB1 - MIB2, GIB1 + MIB2)])
    assert list(listing.runs()) == [Run(GIB1 - MIB2, 2 * MIB2, W)]
    assert guest.fetched == 1 + 1 + 2 + 2


def test_a_small_cache_costs_fetches_and_no_truth() -> None:
    """Two directories of 512 page tables lead to the same ones, in turn."""
    tables = Tables(4, 47)
    for table in range(512):
        tables.map(table * MIB2 + KIB4, table * KIB4)
    tables.set_entry(GIB1, 3, tables.get_entry(0, 3))
    wide, narrow = tables.reader(), tables.reader()
    listing = Listing(narrow, tables.form, limits=ListLimits(cache_pages=64))
    assert list(listing.leaves()) == list(Listing(wide, tables.form).leaves())
    assert set(wide.fetched.values()) == {1}
    assert listing.report.tables == len(tables.pages) == wide.fetched.total()
    assert listing.report.refetched == narrow.fetched.total() - len(tables.pages) > 400
    assert listing.report.limits_hit == ("cache_pages",)
    # upper tables stay
    assert all(narrow.fetched[gpa] == 1 for gpa in (tables.root, tables.get_entry(0, 4) & 0xFFFF_F000))


def test_few_summaries_cost_time_and_no_truth() -> None:
    tables = Tables(4, 47)
    for table in range(1100):
        tables.map(table * MIB2 + KIB4, table * KIB4)
    listing = Listing(tables.reader(), tables.form, limits=ListLimits(summaries=4))
    assert [leaf.gva for leaf in listing.leaves()] == [table * MIB2 + KIB4 for table in range(1100)]
    assert listing.report.limits_hit == ("summaries",)


class Broken:
    """A reader that gives what it should not."""

    def __init__(self, answer: list[bytes | None]) -> None:
        self.answer = answer

    def read_tables(self, gpas: Sequence[int], *, keep: bool = True) -> list[bytes | None]:
        return self.answer


@pytest.mark.parametrize("answer", [[], [b"short"], [bytes(4096), bytes(4096)]])
def test_a_reader_that_breaks_its_word(answer: list[bytes | None]) -> None:
    with pytest.raises(ValueError, match="page"):
        list(Listing(Broken(answer), Tables().form).leaves())


def test_a_reader_that_fails_midway() -> None:
    guest = Sparse(4 * GIB1)

    class Gone(Exception):
        pass

    def until(count: int) -> Iterator[None]:
        yield from [None] * count
        raise Gone

    clock = until(4)
    reading = guest.read_tables

    def read_tables(gpas: Sequence[int], *, keep: bool = True) -> list[bytes | None]:
        next(clock)
        return reading(gpas, keep=keep)

    guest.read_tables = read_tables  # type: ignore[method-assign]
    listing = Listing(guest, guest.form)
    with pytest.raises(Gone):
        list(listing.leaves())
    assert listing.report.leaves == 256 * 512
    assert listing.report.tables == guest.fetched


@pytest.mark.parametrize("ends", [(-1, 5), (5, 4), (0, (1 << 64) + 1)])
def test_a_range_must_lie_in_64_bits(ends: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="64-bit"):
        list(Listing(Tables().reader(), Tables().form, ranges=[ends]).leaves())


def test_ranges_of_nothing_fetch_nothing() -> None:
    tables = bomb()
    reader = tables.reader()
    assert not list(Listing(reader, tables.form, ranges=[(5, 5), (TIB128, UPPER)]).leaves())
    assert not reader.fetched
