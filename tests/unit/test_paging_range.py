"""Translating a range: pieces without gaps, holes skipped in one step, each table fetched once."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sevkvm.paging.form import PagingForm, PagingMode
from sevkvm.paging.walk import Piece, translate, translate_range
from tests.support.tables import GIB1, KIB4, MIB2, PS, P, Tables

if TYPE_CHECKING:
    from collections.abc import Sequence

TIB128 = 1 << 47


def simple(pieces: Sequence[Piece]) -> list[tuple[int, int | None, int, bool]]:
    return [piece[:4] for piece in pieces]


@pytest.mark.parametrize("levels", [4, 5])
@pytest.mark.parametrize("cbit", [None, 47])
def test_pages_and_holes(levels: int, cbit: int | None) -> None:
    tables = Tables(levels, cbit)
    private = cbit is not None
    tables.map(0x1000, 0x9000)
    tables.map(0x2000, 0x8000, private=False)
    tables.map(MIB2, MIB2 * 5, MIB2)
    pieces = list(translate_range(tables.reader(), tables.form, 0x1800, 2 * MIB2))
    assert simple([piece for piece in pieces if piece.gpa is not None]) == [
        (0x1800, 0x9800, 0x800, private),
        (0x2000, 0x8000, 0x1000, False),
        (MIB2, MIB2 * 5, MIB2, private),
    ]
    assert simple(pieces[-1:]) == [(2 * MIB2, None, 0x1800, False)]
    assert all(piece.translation.gva == piece.gva for piece in pieces)
    assert pieces[-1].translation.fault == "not-present"


def test_a_range_inside_one_page() -> None:
    tables = Tables()
    tables.map(0, 0, GIB1)
    assert simple(list(translate_range(tables.reader(), tables.form, 0x12345, 7))) == [
        (0x12345, 0x12345, 7, False)
    ]
    assert list(translate_range(tables.reader(), tables.form, 0x12345, 0)) == []


def test_the_whole_address_space_of_an_almost_empty_guest() -> None:
    tables = Tables()
    tables.map(0xFFFF_8880_0000_0000, 0, GIB1)
    pieces = list(translate_range(tables.reader(), tables.form, 0, 1 << 64))
    assert len(pieces) == 256 + 1 + 255 + 512
    gap = next(piece for piece in pieces if piece.translation.fault == "non-canonical")
    assert (gap.gva, gap.gva + gap.nbytes) == (TIB128, (1 << 64) - TIB128)
    assert [piece.gpa for piece in pieces if piece.gpa is not None] == [0]


@pytest.mark.parametrize("levels", [4, 5])
def test_an_unreadable_root_is_one_hole_a_half(levels: int) -> None:
    half = 1 << (12 + 9 * levels - 1)
    pieces = list(translate_range(Tables().reader(), PagingForm(PagingMode(levels), 0xFEE0_0000), 0, 1 << 64))
    assert simple(pieces) == [
        (0, None, half, False),
        (half, None, (1 << 64) - 2 * half, False),
        ((1 << 64) - half, None, half, False),
    ]


def test_each_table_is_fetched_once_and_siblings_together() -> None:
    tables = Tables(4, 51)
    for page in range(0, 64 * 512, 37):
        tables.map(page * KIB4, page * KIB4)
    reader = tables.reader()
    pieces = translate_range(reader, tables.form, 0, 64 * MIB2)
    assert sum(piece.gpa is not None for piece in pieces) == len(tables.mapped)
    assert set(reader.fetched.values()) == {1}
    assert reader.fetched.keys() == tables.pages.keys()
    assert reader.batches == 4  # root, one PDPT, one PD, then all 64 PTs


def test_only_tables_of_the_range_are_fetched() -> None:
    tables = Tables()
    for table in range(16):
        tables.map(table * MIB2, 0x1000)
    reader = tables.reader()
    list(translate_range(reader, tables.form, 4 * MIB2, 3 * MIB2))
    assert reader.fetched.total() == 3 + 3


def test_a_page_table_bomb_streams() -> None:
    tables = Tables(4, 47)
    tables.pages[tables.root] = [tables.root | P | tables.mask] * 512
    reader = tables.reader()
    pieces = translate_range(reader, tables.form, 0, TIB128)
    first = list(itertools.islice(pieces, 2000))
    assert {piece.gpa for piece in first} == {tables.root}
    assert reader.fetched.total() == 4  # as root, PDPT, PD and PT


def test_paging_off() -> None:
    pieces = list(translate_range(Tables().reader(), PagingForm(PagingMode.OFF, 0, 47), 0xFFFF_E800, 0x2000))
    assert simple(pieces) == [
        (0xFFFF_E800, 0xFFFF_E800, 0x1800, True),  # no tables, no pages: all of it is one piece
        (0x1_0000_0000, None, 0x800, False),
    ]


@pytest.mark.parametrize(("gva", "nbytes"), [(-1, 2), (1, 1 << 64), (0, -1)])
def test_a_range_must_lie_in_64_bits(gva: int, nbytes: int) -> None:
    tables = Tables()
    with pytest.raises(ValueError, match="64-bit"):
        list(translate_range(tables.reader(), tables.form, gva, nbytes))


@settings(max_examples=100, deadline=None)
@given(
    entries=st.lists(
        st.tuples(
            st.integers(0, 3),
            st.integers(0, 511),
            st.integers(0, 7),
            st.sampled_from([0, P, P | PS, P | 1 << 47]),
        ),
        max_size=24,
    ),
    start=st.integers(0, 8 * MIB2),
    nbytes=st.integers(0, 6 * MIB2),
)
def test_pieces_equal_single_translations(
    entries: list[tuple[int, int, int, int]], start: int, nbytes: int
) -> None:
    """Any tables, cycles included: each piece says what a walk of its own says, at both ends."""
    tables = Tables(4, 47, next_gpa=0)
    gpas = [tables.root, *(tables.new_table() for _ in range(5))]
    for level, index, target, bits in entries:
        tables.pages[gpas[level]][index % 16 if level < 2 else index] = target * 0x1000 | bits
    for upper, lower in itertools.pairwise(gpas[:4]):
        tables.pages[upper][0] = lower | P | tables.mask
    reader = tables.reader()
    at = start
    for piece in translate_range(reader, tables.form, start, nbytes):
        assert piece.gva == at
        assert piece.nbytes > 0
        first = translate(reader, tables.form, at)
        assert piece.translation == first
        last = translate(reader, tables.form, at + piece.nbytes - 1)
        assert (piece.gpa, piece.private, last.fault) == (first.gpa, first.private, first.fault)
        if piece.gpa is not None:
            assert last.gpa == piece.gpa + piece.nbytes - 1
        at += piece.nbytes
    assert at == start + nbytes
