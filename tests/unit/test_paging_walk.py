"""Translating one address: every C-bit case is the plain case with the bit set and the same expected answers."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sevkvm.paging.form import PagingForm, PagingMode
from sevkvm.paging.walk import WalkStep, translate
from tests.support.tables import GIB1, KIB4, MIB2, NX, PAGE_SIZES, PS, RW, US, P, Tables

CBITS = [None, 32, 43, 47, 51]
KERNEL = {4: 0xFFFF_8880_0000_0000, 5: 0xFF11_0000_0000_0000}

forms = pytest.mark.parametrize(("levels", "cbit"), [(n, c) for n in (4, 5) for c in CBITS])


@forms
@pytest.mark.parametrize("page_nbytes", PAGE_SIZES)
@pytest.mark.parametrize("private", [False, True])
def test_a_page_of_every_size(levels: int, cbit: int | None, page_nbytes: int, private: bool) -> None:
    tables = Tables(levels, cbit)
    gva = KERNEL[levels] + 7 * page_nbytes
    tables.map(gva, 3 * page_nbytes, page_nbytes, private=private and cbit is not None, nx=True)
    found = translate(tables.reader(), tables.form, gva + 0xABC)
    assert found.gpa == 3 * page_nbytes + 0xABC
    assert found.page_nbytes == page_nbytes
    assert found.private == (private and cbit is not None)
    assert (found.writable, found.user, found.nx, found.fault) == (True, False, True, None)
    assert [step.level for step in found.steps] == list(
        range(levels, {KIB4: 0, MIB2: 1, GIB1: 2}[page_nbytes], -1)
    )


@forms
def test_steps_hold_the_entries_as_stored(levels: int, cbit: int | None) -> None:
    tables = Tables(levels, cbit)
    tables.map(0x7654_3210_F000, 0x5000)
    found = translate(tables.reader(), tables.form, 0x7654_3210_FFFF)
    assert found.steps[0].table_gpa == tables.root
    for step in found.steps:
        table, index = tables.slot(0x7654_3210_F000, step.level)
        entry = tables.pages[table][index]
        assert step == WalkStep(step.level, table, index, entry, cbit is not None)
        assert bool(entry & tables.mask) == step.cbit


@forms
@pytest.mark.parametrize("level", [2, 3, 4])
@pytest.mark.parametrize("taken", [RW, US])
def test_any_level_takes_a_right_away(levels: int, cbit: int | None, level: int, taken: int) -> None:
    tables = Tables(levels, cbit)
    tables.map(0x1000, 0x5000, writable=True, user=True)
    tables.set_entry(0x1000, level, tables.get_entry(0x1000, level) & ~taken)
    found = translate(tables.reader(), tables.form, 0x1000)
    assert (found.writable, found.user, found.nx) == (taken != RW, taken != US, False)


@forms
@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_any_level_forbids_execution(levels: int, cbit: int | None, level: int) -> None:
    tables = Tables(levels, cbit)
    tables.map(0x1000, 0x5000, user=True)
    tables.set_entry(0x1000, level, tables.get_entry(0x1000, level) | NX)
    found = translate(tables.reader(), tables.form, 0x1000)
    assert (found.gpa, found.nx, found.writable, found.user) == (0x5000, True, True, True)


@forms
def test_the_leaf_alone_says_private(levels: int, cbit: int | None) -> None:
    tables = Tables(levels, cbit)
    tables.map(0x1000, 0x5000, private=False)
    tables.map(0x2000, 0x6000, private=cbit is not None)
    for level in range(2, levels + 1):  # no kernel does this; the processor reads tables as private even so
        tables.set_entry(0x1000, level, tables.get_entry(0x1000, level) & ~tables.mask)
    shared = translate(tables.reader(), tables.form, 0x1000)
    private = translate(tables.reader(), tables.form, 0x2000)
    assert (shared.gpa, shared.private) == (0x5000, False)
    assert (private.gpa, private.private) == (0x6000, cbit is not None)


@forms
@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_a_miss_names_level_and_entry(levels: int, cbit: int | None, level: int) -> None:
    tables = Tables(levels, cbit)
    tables.map(0x1000, 0x5000)
    raw = tables.get_entry(0x1000, level) & ~P
    tables.set_entry(0x1000, level, raw)
    found = translate(tables.reader(), tables.form, 0x1000)
    assert (found.gpa, found.page_nbytes, found.fault) == (None, None, "not-present")
    assert (found.private, found.writable, found.user, found.nx) == (False,) * 4
    assert (found.steps[-1].level, found.steps[-1].entry) == (level, raw)


@forms
@pytest.mark.parametrize(
    ("level", "bits"),
    [(4, PS), (2, PS | 1 << 13), (2, PS | 1 << 20), (3, PS | 1 << 13), (3, PS | 1 << 29)],
)
def test_reserved_bits_fault(levels: int, cbit: int | None, level: int, bits: int) -> None:
    tables = Tables(levels, cbit)
    tables.set_entry(0, level, P | RW | tables.mask | bits)
    found = translate(tables.reader(), tables.form, 0x1000)
    assert (found.gpa, found.fault, found.steps[-1].level) == (None, "reserved-bit", level)


@pytest.mark.parametrize("cbit", CBITS)
def test_no_page_of_256_tib(cbit: int | None) -> None:
    tables = Tables(5, cbit)
    tables.set_entry(0, 5, P | RW | tables.mask | PS)
    found = translate(tables.reader(), tables.form, 0x1000)
    assert (found.gpa, found.fault, found.steps[-1].level) == (None, "reserved-bit", 5)


@forms
@pytest.mark.parametrize(("level", "bits"), [(2, PS | 1 << 12), (3, PS | 1 << 12), (1, PS), (1, 0x7FF << 52)])
def test_ignored_bits_and_pat_do_not(levels: int, cbit: int | None, level: int, bits: int) -> None:
    tables = Tables(levels, cbit)
    tables.set_entry(0, level, P | tables.mask | bits)
    assert translate(tables.reader(), tables.form, 0xABC).gpa == 0xABC


@forms
def test_nx_is_reserved_where_efer_nxe_is_clear(levels: int, cbit: int | None) -> None:
    tables = Tables(levels, cbit)
    tables.map(0x1000, 0x5000, nx=True)
    form = PagingForm(PagingMode(levels), tables.root, cbit, nx=False)
    assert translate(tables.reader(), form, 0x1000).fault == "reserved-bit"


@pytest.mark.parametrize(
    ("levels", "last_low", "first_high"),
    [(4, 0x7FFF_FFFF_FFFF, 0xFFFF_8000_0000_0000), (5, 0xFF_FFFF_FFFF_FFFF, 0xFF00_0000_0000_0000)],
)
def test_canonical_addresses(levels: int, last_low: int, first_high: int) -> None:
    tables = Tables(levels)
    reader = tables.reader()
    for gva in (last_low, first_high, 0, (1 << 64) - 1):
        assert translate(reader, tables.form, gva).fault == "not-present"
    for gva in (last_low + 1, first_high - 1):
        before = reader.fetched.total()
        found = translate(reader, tables.form, gva)
        assert (found.gpa, found.fault, found.steps) == (None, "non-canonical", ())
        assert reader.fetched.total() == before


@forms
def test_a_table_that_cannot_be_read(levels: int, cbit: int | None) -> None:
    tables = Tables(levels, cbit)
    tables.set_entry(0, 3, 0xFEE0_0000 | P | RW | tables.mask)
    found = translate(tables.reader(), tables.form, 0)
    assert (found.gpa, found.fault, found.steps[-1].level) == (None, "table-unreadable", 3)
    found = translate(tables.reader(), PagingForm(PagingMode(levels), 0xFEE0_0000, cbit), 0)
    assert (found.gpa, found.fault, found.steps) == (None, "table-unreadable", ())


def test_commands_of_a_cold_walk_and_of_its_neighbours() -> None:
    tables = Tables(4, 51)
    for page in range(4):
        tables.map(page * KIB4, page * KIB4)
    reader = tables.reader()
    reader.caching = True
    translate(reader, tables.form, 0)
    assert reader.fetched.total() == 4
    for page in range(1, 4):
        translate(reader, tables.form, page * KIB4)
    assert reader.fetched.total() == 4


@pytest.mark.parametrize("levels", [4, 5])
def test_a_table_that_leads_to_itself(levels: int) -> None:
    tables = Tables(levels, 47)
    tables.pages[tables.root] = [tables.root | P | RW | tables.mask] * 512
    found = translate(tables.reader(), tables.form, 0x123)
    assert (found.gpa, len(found.steps)) == (tables.root + 0x123, levels)


def test_paging_off_is_the_identity() -> None:
    reader = Tables().reader()
    found = translate(reader, PagingForm(PagingMode.OFF, 0), 0xFFFF_FFFF)
    assert (found.gpa, found.page_nbytes, found.private, found.steps) == (0xFFFF_FFFF, 4096, False, ())
    assert translate(reader, PagingForm(PagingMode.OFF, 0, 47), 5).private
    assert translate(reader, PagingForm(PagingMode.OFF, 0), 1 << 32).fault == "non-canonical"
    assert not reader.fetched


@pytest.mark.parametrize(
    ("mode", "root", "cbit"),
    [
        (PagingMode.LEVEL4, 0x123, None),
        (PagingMode.LEVEL4, 1 << 47, 47),
        (PagingMode.LEVEL4, 1 << 52, None),
        (PagingMode.LEVEL4, 0, 31),
        (PagingMode.LEVEL4, 0, 52),
        (PagingMode.PAE, 0x1010, None),
        (PagingMode.PAE, 1 << 32, None),
        (PagingMode.PSE, 0x1020, None),
        (PagingMode.LEGACY, 1 << 32, None),
        (PagingMode.OFF, 0x1000, None),
    ],
)
def test_forms_that_no_processor_has(mode: PagingMode, root: int, cbit: int | None) -> None:
    with pytest.raises(ValueError, match=r"gpa of a table|C-bit"):
        PagingForm(mode, root, cbit)


@pytest.mark.parametrize("gva", [-1, 1 << 64])
def test_an_address_of_more_than_64_bits_is_a_mistake(gva: int) -> None:
    tables = Tables()
    with pytest.raises(ValueError, match="64-bit"):
        translate(tables.reader(), tables.form, gva)


@settings(max_examples=150, deadline=None)
@given(
    levels=st.sampled_from([4, 5]),
    cbit=st.one_of(st.none(), st.integers(32, 51)),
    pages=st.lists(
        st.tuples(
            st.integers(0, 3),
            st.integers(0, 511),
            st.sampled_from(PAGE_SIZES),
            st.integers(0, 1 << 19),
            st.tuples(st.booleans(), st.booleans(), st.booleans(), st.booleans()),
        ),
        max_size=12,
        unique_by=lambda page: page[:2],
    ),
)
def test_random_mappings_translate_to_what_was_mapped(
    levels: int, cbit: int | None, pages: list[tuple[int, int, int, int, tuple[bool, bool, bool, bool]]]
) -> None:
    tables = Tables(levels, cbit, next_gpa=0x1_0000_0000 - 0x100_0000)
    top = 1 << (12 + 9 * levels - 1)
    for quarter, slot, page_nbytes, frame, (private, writable, user, nx) in pages:
        # a gigabyte of its own for each page, in both canonical halves
        gva = (quarter * top // 2 + slot * GIB1) if quarter < 2 else ((1 << 64) - top + slot * GIB1)
        if quarter == 3:
            gva += top // 2
        gpa = frame * page_nbytes % (1 << 32)
        tables.map(
            gva, gpa, page_nbytes, private=private and cbit is not None, writable=writable, user=user, nx=nx
        )
    reader = tables.reader()
    for page in tables.mapped:
        for offset in (0, page.page_nbytes // 2 + 5, page.page_nbytes - 1):
            found = translate(reader, tables.form, page.gva + offset)
            assert found.fault is None
            assert found.gpa == page.gpa + offset
            assert (found.page_nbytes, found.private) == (page.page_nbytes, page.private)
            assert (found.writable, found.user, found.nx) == (page.writable, page.user, page.nx)
        if page.page_nbytes < GIB1:
            assert translate(reader, tables.form, page.gva + page.page_nbytes).gpa is None


@settings(max_examples=100, deadline=None)
@given(
    noise=st.lists(st.integers(0, (1 << 64) - 1), min_size=1, max_size=8),
    gvas=st.lists(st.integers(0, (1 << 64) - 1), min_size=1, max_size=20),
    cbit=st.one_of(st.none(), st.integers(32, 51)),
    levels=st.sampled_from([4, 5]),
)
def test_noise_for_tables_ends_and_answers(
    noise: list[int], gvas: list[int], cbit: int | None, levels: int
) -> None:
    tables = Tables(levels, cbit, next_gpa=0)
    others = [tables.new_table() for _ in range(3)]
    for number, gpa in enumerate([tables.root, *others]):
        tables.pages[gpa] = [
            noise[(i + number) % len(noise)] & ~0xF000 | i % 4 << 12 | i & 1 for i in range(512)
        ]
    reader = tables.reader()
    for gva in gvas:
        gva = gva & (1 << (12 + 9 * levels - 1)) - 1
        found = translate(reader, tables.form, gva)
        assert len(found.steps) <= levels
        assert (found.gpa is None) == (found.fault is not None)
