"""Listings of any tables, cycles and shared subtrees included, against the slow and simple way; every paging mode."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from sevkvm.native import EntryFlag
from sevkvm.paging.form import PagingForm, PagingMode
from sevkvm.paging.listing import Listing, ListLimits
from tests.support.emulated import Mode
from tests.support.naive import Naive, NaiveLeaf, NaiveRun, TooManyPieces, add_run
from tests.support.randomtables import TABLES_GPA, RandomTables
from tests.support.refwalk import LAYOUTS, reference_leaves, reference_tlb, root_of
from tests.support.tables import GIB1, KIB4, MIB2, NX, PS, RW, TABLE, US, CountingReader, P

LETTERS = {
    "u": EntryFlag.USER,
    "w": EntryFlag.WRITABLE,
    "p": EntryFlag.PRIVATE,
    "1": EntryFlag.LEVEL1,
    "2": EntryFlag.LEVEL2,
    "3": EntryFlag.LEVEL3,
}
FORMS = {mode.option_name: mode for mode in PagingMode}


def letters(flags: int) -> str:
    x = "" if flags & EntryFlag.NX else "x"
    return "".join(letter for letter, flag in LETTERS.items() if flags & flag) + x


def same(letters: str) -> str:
    return "".join(sorted(letters))


Spec = tuple[int, list[tuple[int, int]]]  # one entry for all 512, then a few others

SOUND = P | RW | US
BITS = st.sampled_from(
    [SOUND] * 6 + [P | RW, P | US, SOUND | NX, SOUND | 1 << 47, SOUND | PS, P | RW | PS | MIB2]
)
ENTRY = st.builds(lambda target, bits: target * KIB4 | bits, st.integers(1, 6), BITS)  # table 6 is not there
INDEX = st.sampled_from([0, 1, 2, 255, 256, 257, 510, 511])
SPARSE = st.tuples(st.just(0), st.lists(st.tuples(INDEX, ENTRY), min_size=2, max_size=6))
DENSE = st.tuples(ENTRY, st.lists(st.tuples(INDEX, ENTRY | st.just(0)), max_size=1))
TABLES = st.tuples(SPARSE, SPARSE, SPARSE, SPARSE | DENSE, DENSE, DENSE)
ADDRESSES = st.one_of(
    st.integers(0, 1 << 64),
    st.builds(
        lambda base, size, count: max(0, min(1 << 64, base + size * count)),
        st.sampled_from([0, 1 << 47, 1 << 56, (1 << 64) - (1 << 47), (1 << 64) - (1 << 56), 1 << 64]),
        st.sampled_from([1, KIB4, MIB2, GIB1, GIB1 * 512]),
        st.integers(-600, 600),
    ),
)
RANGES = st.lists(
    st.tuples(ADDRESSES, ADDRESSES).map(lambda pair: (min(pair), max(pair))), min_size=1, max_size=4
)
MANY = 3000
LIMITS = st.sampled_from([ListLimits(), ListLimits(cache_pages=64, summaries=3, unreadable=1)])


def build(tables: Sequence[Spec]) -> dict[int, list[int]]:
    pages = {}
    for number, (every, others) in enumerate(tables):
        entries = [every] * 512
        for index, entry in others:
            entries[index] = entry
        pages[number * KIB4] = entries
    return pages


@settings(max_examples=60, deadline=None)
@given(
    tables=TABLES,
    levels=st.sampled_from([4, 5]),
    nx=st.booleans(),
    apart=st.sampled_from(["uw", "uwxp123", "", "p1", "x"]),
    ranges=st.one_of(st.just([(0, 1 << 64)]), RANGES),
    limits=LIMITS,
)
def test_runs_of_any_tables(
    tables: Sequence[Spec],
    levels: int,
    nx: bool,
    apart: str,
    ranges: list[tuple[int, int]],
    limits: ListLimits,
) -> None:
    pages = build(tables)
    naive = Naive(pages, 0, levels, 47, nx)
    reader = CountingReader({gpa: TABLE.pack(*entries) for gpa, entries in pages.items()})
    form = PagingForm(PagingMode(levels), 0, 47, nx)
    listing = Listing(reader, form, ranges=ranges, limits=limits)
    flags = sum(LETTERS[letter] for letter in apart if letter != "x") | (EntryFlag.NX if "x" in apart else 0)
    try:
        expected = naive.runs(apart, ranges)
    except TooManyPieces:
        reject()
    found = []
    for number, run in enumerate(listing.runs(flags)):
        found.append(run)
        if number > len(expected):
            break
    told = [
        NaiveRun(run.gva, run.nbytes, same("".join(c for c in letters(run.flags) if c in apart)))
        for run in found
    ]
    assert told == [NaiveRun(run.gva, run.nbytes, same(run.letters)) for run in expected]
    assert all(count == 1 for count in reader.fetched.values())


@settings(max_examples=50, deadline=None)
@given(
    tables=TABLES,
    levels=st.sampled_from([4, 5]),
    nx=st.booleans(),
    ranges=st.one_of(st.just([(0, 1 << 64)]), RANGES),
    limits=LIMITS,
)
def test_leaves_of_any_tables(
    tables: Sequence[Spec],
    levels: int,
    nx: bool,
    ranges: list[tuple[int, int]],
    limits: ListLimits,
) -> None:
    """The first ones: there may be 512**5."""
    pages = build(tables)
    reader = CountingReader({gpa: TABLE.pack(*entries) for gpa, entries in pages.items()})
    form = PagingForm(PagingMode(levels), 0, 47, nx)
    listing = Listing(reader, form, ranges=ranges, limits=limits)
    expected = itertools.islice(Naive(pages, 0, levels, 47, nx).leaves(ranges), MANY)
    found = list(itertools.islice(listing.leaves(), MANY))
    assert [
        NaiveLeaf(leaf.gva, leaf.gpa, leaf.nbytes, leaf.level, leaf.entry, same(letters(leaf.flags)))
        for leaf in found
    ] == [leaf._replace(letters=same(leaf.letters)) for leaf in expected]
    lines = b"".join(itertools.islice(listing.leaves_text(), 3)).decode().splitlines()
    for leaf, line in zip(found, lines, strict=False):
        assert line.startswith(f"{leaf.gva:016x}: {leaf.gpa:016x} ")


@pytest.mark.parametrize("mode", LAYOUTS)
@pytest.mark.parametrize("seed", [1, 2, 5])
def test_every_mode_with_a_walker_of_its_own(mode: Mode, seed: int) -> None:
    tables = RandomTables(random.Random(f"{mode} {seed}"), mode)

    def read(gpa: int, nbytes: int) -> bytes | None:
        at = gpa - TABLES_GPA
        return bytes(tables.data[at : at + nbytes]) if 0 <= at < len(tables.data) else None

    pages = {
        gpa: page
        for gpa in range(TABLES_GPA, TABLES_GPA + len(tables.data), KIB4)
        if (page := read(gpa, KIB4))
    }
    expected = reference_leaves(read, mode, tables.cr3)
    assert len(expected) > 100
    reader = CountingReader(pages)
    listing = Listing(reader, PagingForm(FORMS[mode], root_of(mode, tables.cr3)))
    found = [
        (*leaf[:3], leaf.entry, bool(leaf.flags & EntryFlag.WRITABLE), bool(leaf.flags & EntryFlag.USER))
        for leaf in listing.leaves()
    ]
    assert listing.report.reserved == 0, "the other walker does not know them: take another seed"
    assert found == [tuple(leaf) for leaf in expected]
    assert set(reader.fetched.values()) == {1}
    assert b"".join(listing.leaves_text()).decode() == reference_tlb(expected)
    merged: list[NaiveRun] = []
    for leaf in expected:
        add_run(merged, NaiveRun(leaf.gva, leaf.nbytes, "u" * leaf.user + "w" * leaf.writable))
    assert [NaiveRun(run.gva, run.nbytes, letters(run.flags).strip("x")) for run in listing.runs()] == merged
    some = [run for run in merged if run.gva <= expected[50].gva < run.gva + run.nbytes]
    cut = listing_of(pages, mode, tables.cr3, [(expected[50].gva, expected[50].gva + 1)])
    assert [run.letters for run in some] == [letters(run.flags).strip("x") for run in cut.runs()]
    assert [(run.gva, run.nbytes) for run in cut.runs()] == [(expected[50].gva, 1)]


def listing_of(pages: dict[int, bytes], mode: Mode, cr3: int, ranges: Sequence[tuple[int, int]]) -> Listing:
    return Listing(CountingReader(pages), PagingForm(FORMS[mode], root_of(mode, cr3)), ranges=ranges)
