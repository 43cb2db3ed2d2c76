"""Translating without long mode: 32-bit tables, with and without 4 MiB pages, and PAE.

Every C-bit case of PAE is the plain case with the bit set and the same expected answers; 32-bit tables have no C-bit,
so that all of an encrypted guest is private there.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sevkvm.paging.form import PagingForm, PagingMode
from sevkvm.paging.scan import leaves
from sevkvm.paging.walk import WalkStep, translate, translate_range
from tests.support.tables import KIB4, LAYOUTS, MIB2, MIB4, NX, PAE_ROOT_OFFSET, PS, RW, US, P, Tables

CBITS = [None, 32, 47, 51]
LEGACY, PSE, PAE = PagingMode.LEGACY, PagingMode.PSE, PagingMode.PAE
MODES = (LEGACY, PSE, PAE)
GVA = 0xC123_4000  # where a 32-bit Linux has its kernel

forms = pytest.mark.parametrize(("mode", "cbit"), [(mode, cbit) for mode in MODES for cbit in CBITS])
narrow_forms = pytest.mark.parametrize(("mode", "cbit"), [(m, c) for m in (LEGACY, PSE) for c in CBITS])
pae_forms = pytest.mark.parametrize("cbit", CBITS)


@forms
def test_a_page_of_every_size(mode: PagingMode, cbit: int | None) -> None:
    for page_nbytes, level in LAYOUTS[mode].pages.items():
        tables = Tables(mode, cbit)
        gva = 0xC000_0000 + 7 * page_nbytes
        tables.map(gva, 3 * page_nbytes, page_nbytes, user=True)
        found = translate(tables.reader(), tables.form, gva + 0xABC)
        assert (found.gpa, found.page_nbytes) == (3 * page_nbytes + 0xABC, page_nbytes)
        assert found.private == (cbit is not None)
        assert (found.writable, found.user, found.nx, found.fault) == (True, True, False, None)
        assert [step.level for step in found.steps] == list(range(tables.levels, level - 1, -1))


@forms
def test_steps_hold_the_entries_as_stored(mode: PagingMode, cbit: int | None) -> None:
    tables = Tables(mode, cbit)
    tables.map(GVA, 0x5000)
    found = translate(tables.reader(), tables.form, GVA + 0xFFF)
    assert found.steps[0].table_gpa == tables.root
    for step in found.steps:
        table, index = tables.slot(GVA, step.level)
        assert step == WalkStep(step.level, table, index, tables.pages[table][index], tables.mask != 0)


@pytest.mark.parametrize("cbit", [None, 47])
@pytest.mark.parametrize("gpa", [0xFFC0_0000, 0x1_0000_0000, 0xF_FFC0_0000, 0xFF_FFC0_0000])
def test_a_page_of_4_mib_may_lie_above_4_gib(cbit: int | None, gpa: int) -> None:
    tables = Tables(PSE, cbit)
    tables.map(0xFFC0_0000, gpa, MIB4)
    assert translate(tables.reader(), tables.form, 0xFFFF_FFFF).gpa == gpa + 0x3F_FFFF


def test_physical_addresses_of_36_bits() -> None:
    tables = Tables(PSE)
    tables.map(0, 0xF_0000_0000, MIB4)
    tables.map(MIB4, 0x10_0000_0000, MIB4)
    form = PagingForm(PSE, tables.root, phys_bits=36)
    assert translate(tables.reader(), form, 0).gpa == 0xF_0000_0000
    assert translate(tables.reader(), form, MIB4).fault == "reserved-bit"


@pytest.mark.parametrize("cbit", [None, 51])
def test_without_pse_bit_7_is_ignored(cbit: int | None) -> None:
    tables = Tables(LEGACY, cbit)
    tables.map(0x1000, 0x5000)
    tables.set_entry(0, 2, tables.get_entry(0, 2) | PS)
    assert translate(tables.reader(), tables.form, 0x1000).gpa == 0x5000
    # with it the same entry is a page: the table's address, 0x101000, has bits 20 and 12 set
    found = translate(tables.reader(), PagingForm(PSE, tables.root, cbit), 0x1000)
    assert (found.gpa, found.page_nbytes) == (0x80_0000_1000, MIB4)


@forms
@pytest.mark.parametrize("taken", [RW, US])
def test_any_level_takes_a_right_away(mode: PagingMode, cbit: int | None, taken: int) -> None:
    for level in (1, 2):
        tables = Tables(mode, cbit)
        tables.map(GVA, 0x5000, writable=True, user=True)
        tables.set_entry(GVA, level, tables.get_entry(GVA, level) & ~taken)
        found = translate(tables.reader(), tables.form, GVA)
        assert (found.writable, found.user, found.nx) == (taken != RW, taken != US, False)


@pae_forms
@pytest.mark.parametrize("level", [1, 2])
def test_pae_forbids_execution(cbit: int | None, level: int) -> None:
    tables = Tables(PAE, cbit)
    tables.map(GVA, 0x5000)
    tables.set_entry(GVA, level, tables.get_entry(GVA, level) | NX)
    found = translate(tables.reader(), tables.form, GVA)
    assert (found.gpa, found.nx, found.private) == (0x5000, True, cbit is not None)
    without = PagingForm(PAE, tables.root, cbit, nx=False)
    found = translate(tables.reader(), without, GVA)
    assert (found.fault, found.steps[-1].level) == ("reserved-bit", level)


@pae_forms
@pytest.mark.parametrize("bit", [1, 2, 5, 6, 7, 8, 52, 62, 63])
def test_reserved_bits_of_paes_top_entry(cbit: int | None, bit: int) -> None:
    tables = Tables(PAE, cbit)
    tables.map(GVA, 0x5000)
    assert translate(tables.reader(), tables.form, GVA).writable
    tables.set_entry(GVA, 3, tables.get_entry(GVA, 3) | 1 << bit)
    found = translate(tables.reader(), tables.form, GVA)
    assert (found.gpa, found.fault, found.steps[-1].level) == (None, "reserved-bit", 3)


@pae_forms
@pytest.mark.parametrize("bit", [3, 4, 9, 10, 11])
def test_bits_of_paes_top_entry_that_are_not_reserved(cbit: int | None, bit: int) -> None:
    tables = Tables(PAE, cbit)
    tables.map(GVA, 0x5000)
    tables.set_entry(GVA, 3, tables.get_entry(GVA, 3) | 1 << bit)
    assert translate(tables.reader(), tables.form, GVA).gpa == 0x5000


@pae_forms
@pytest.mark.parametrize(
    ("level", "bits"), [(1, 1 << 52), (1, 1 << 62), (2, 1 << 59), (2, PS | 1 << 13), (2, PS | 1 << 20)]
)
def test_reserved_bits_of_pae(cbit: int | None, level: int, bits: int) -> None:
    tables = Tables(PAE, cbit)
    tables.set_entry(0, level, P | RW | tables.mask | bits)
    found = translate(tables.reader(), tables.form, 0x123)
    assert (found.gpa, found.fault, found.steps[-1].level) == (None, "reserved-bit", level)


@pytest.mark.parametrize("cbit", CBITS)
def test_the_reserved_bit_of_a_4_mib_page(cbit: int | None) -> None:
    tables = Tables(PSE, cbit)
    tables.set_entry(0, 2, P | PS | 1 << 21)
    assert translate(tables.reader(), tables.form, 0x123).fault == "reserved-bit"
    tables.set_entry(0, 2, P | PS | 1 << 12)  # PAT
    assert translate(tables.reader(), tables.form, 0x123).gpa == 0x123


@narrow_forms
def test_nothing_else_of_32_bit_entries_is_reserved(mode: PagingMode, cbit: int | None) -> None:
    tables = Tables(mode, cbit)
    tables.map(0, 0xFFFF_F000)
    for level in (1, 2):
        tables.set_entry(0, level, tables.get_entry(0, level) | 0xF7F & ~PS)
    for nx in (True, False):
        found = translate(tables.reader(), PagingForm(mode, tables.root, cbit, nx=nx), 0x123)
        assert (found.gpa, found.nx) == (0xFFFF_F123, False)


@forms
def test_a_miss_names_level_and_entry(mode: PagingMode, cbit: int | None) -> None:
    for level in range(1, Tables(mode).levels + 1):
        tables = Tables(mode, cbit)
        tables.map(GVA, 0x5000)
        raw = tables.get_entry(GVA, level) & ~P
        tables.set_entry(GVA, level, raw)
        found = translate(tables.reader(), tables.form, GVA)
        assert (found.gpa, found.fault, found.private) == (None, "not-present", False)
        assert (found.steps[-1].level, found.steps[-1].entry) == (level, raw)


@forms
def test_there_is_nothing_above_4_gib(mode: PagingMode, cbit: int | None) -> None:
    tables = Tables(mode, cbit)
    tables.map(0xFFFF_F000, 0x5000)
    reader = tables.reader()
    assert translate(reader, tables.form, 0xFFFF_FFFF).gpa == 0x5FFF
    before = reader.fetched.total()
    for gva in (1 << 32, 0x1_FFFF_F000, 0xFFFF_FFFF_FFFF_F000):
        found = translate(reader, tables.form, gva)
        assert (found.gpa, found.fault, found.steps) == (None, "non-canonical", ())
    assert reader.fetched.total() == before
    last = list(translate_range(reader, tables.form, 0xFFFF_F800, (1 << 64) - 0xFFFF_F800))
    assert [(piece.gva, piece.gpa, piece.nbytes) for piece in last] == [
        (0xFFFF_F800, 0x5800, 0x800),
        (1 << 32, None, (1 << 64) - (1 << 32)),
    ]


@forms
def test_a_table_that_cannot_be_read(mode: PagingMode, cbit: int | None) -> None:
    tables = Tables(mode, cbit)
    tables.set_entry(GVA, 2, 0xFEE0_0000 | P | tables.mask)
    found = translate(tables.reader(), tables.form, GVA)
    assert (found.gpa, found.fault, found.steps[-1].level) == (None, "table-unreadable", 2)
    nowhere = PagingForm(mode, 0xFEE0_0000, cbit)
    found = translate(tables.reader(), nowhere, GVA)
    assert (found.fault, found.steps) == ("table-unreadable", ())
    (hole,) = translate_range(tables.reader(), nowhere, 0, 1 << 32)
    assert (hole.gpa, hole.nbytes) == (None, 1 << 32)


@forms
def test_a_range_asks_for_each_table_once(mode: PagingMode, cbit: int | None) -> None:
    tables = Tables(mode, cbit)
    for page in range(0, 16 * 1024, 0x2F):
        tables.map(page * KIB4, page * KIB4)
    tables.map(0xC000_0000, 0)
    reader = tables.reader()
    pieces = [piece for piece in translate_range(reader, tables.form, 0, 1 << 32) if piece.gpa is not None]
    assert [(piece.gva, piece.gpa) for piece in pieces] == [(page.gva, page.gpa) for page in tables.mapped]
    assert set(reader.fetched.values()) == {1}
    assert reader.fetched.total() == len(tables.pages)
    # the root, then all that one table leads to; PAE has two page directories here, each with its tables
    assert reader.batches == (4 if mode is PAE else 2)


@forms
def test_a_scan_finds_the_same_pages(mode: PagingMode, cbit: int | None) -> None:
    tables = Tables(mode, cbit)
    large = max(LAYOUTS[mode].pages)
    tables.map(0xC000_0000, large, large)
    tables.map(0x0800_0000, 0x5000)
    found = leaves(tables.reader(), [tables.form])
    assert set(found.ranges(cbit is not None)) == {(large, 2 * large), (0x5000, 0x6000)}
    assert not list(found.ranges(cbit is None))
    assert list(found.table_gpas) == sorted(gpa & ~0xFFF for gpa in tables.pages)


@pae_forms
def test_two_roots_in_one_page(cbit: int | None) -> None:
    """A 32-bit Linux takes them from a slab; every vCPU has its own."""
    tables = Tables(PAE, cbit)
    tables.map(GVA, 0x5000)
    other = tables.root - PAE_ROOT_OFFSET
    reader = tables.reader()
    page = bytearray(reader.pages[other])
    page[0:32] = page[PAE_ROOT_OFFSET : PAE_ROOT_OFFSET + 32]
    reader.pages[other] = bytes(page)
    form = PagingForm(PAE, other, cbit)
    assert translate(reader, form, GVA).gpa == translate(reader, tables.form, GVA).gpa == 0x5000
    found = leaves(reader, [tables.form, form])
    assert found.tables_by_level == {3: 2, 2: 1, 1: 1}
    assert len(found.table_gpas) == 3


@pytest.mark.parametrize("cbit", CBITS)
def test_forms_of_different_modes_are_scanned_together(cbit: int | None) -> None:
    pae, long = Tables(PAE, cbit), Tables(4, cbit, next_gpa=0x20_0000)
    narrow = Tables(PSE, cbit, next_gpa=0x30_0000)
    reader = pae.reader()
    for number, tables in enumerate((pae, long, narrow)):
        tables.map(0x1000, 0x5000 + 0x2000 * number)
        reader.pages |= tables.reader().pages
    found = leaves(reader, [pae.form, long.form, narrow.form, PagingForm(PagingMode.OFF, 0, cbit)])
    assert list(found.ranges(cbit is not None)) == [(0x5000, 0x6000), (0x7000, 0x8000), (0x9000, 0xA000)]


pages_of_4_gib = st.lists(
    st.tuples(
        st.integers(0, 1023), st.booleans(), st.integers(0, 1023), st.booleans(), st.booleans(), st.booleans()
    ),
    max_size=12,
    unique_by=lambda page: page[0],
)


@settings(max_examples=150, deadline=None)
@given(mode=st.sampled_from(MODES), cbit=st.one_of(st.none(), st.integers(41, 51)), pages=pages_of_4_gib)
def test_random_mappings_translate_to_what_was_mapped(
    mode: PagingMode, cbit: int | None, pages: list[tuple[int, bool, int, bool, bool, bool]]
) -> None:
    tables = Tables(mode, cbit, next_gpa=0x8000_0000)
    large = max(LAYOUTS[mode].pages)
    for slot, wants_large, frame, writable, user, nx in pages:
        page_nbytes = large if wants_large else KIB4
        # a 4 MiB page may lie above 4 GiB, what 32-bit entries map else not
        gpa = frame * page_nbytes * (0x40 if page_nbytes == MIB4 else 1)
        tables.map(slot * MIB4, gpa, page_nbytes, writable=writable, user=user, nx=nx and mode is PAE)
    reader = tables.reader()
    for page in tables.mapped:
        for offset in (0, page.page_nbytes // 2 + 5, page.page_nbytes - 1):
            found = translate(reader, tables.form, page.gva + offset)
            assert (found.fault, found.gpa) == (None, page.gpa + offset)
            assert (found.page_nbytes, found.private) == (page.page_nbytes, cbit is not None)
            assert (found.writable, found.user, found.nx) == (page.writable, page.user, page.nx)
        if page.page_nbytes < MIB4:
            assert translate(reader, tables.form, page.gva + page.page_nbytes).gpa is None


@settings(max_examples=100, deadline=None)
@given(
    mode=st.sampled_from([PAE, PagingMode.LEVEL4, PagingMode.LEVEL5]),
    cbit=st.integers(32, 51),
    noise=st.lists(st.integers(0, (1 << 64) - 1), min_size=1, max_size=8),
    gvas=st.lists(st.integers(0, (1 << 32) - 1), min_size=1, max_size=20),
)
def test_the_c_bit_everywhere_changes_nothing_but_private(
    mode: PagingMode, cbit: int, noise: list[int], gvas: list[int]
) -> None:
    plain = Tables(mode, next_gpa=0)
    gpas = [plain.root, *(plain.new_table() for _ in range(3))]
    for number, gpa in enumerate(gpas):
        for index in range(len(plain.pages[gpa])):
            raw = noise[(index + number) % len(noise)] & ~(1 << cbit) & ~0xF000
            plain.pages[gpa][index] = raw | index % 4 << 12 | index & 1
    sealed = Tables(mode, cbit, next_gpa=0)
    for gpa, entries in plain.pages.items():
        sealed.pages[gpa] = [entry | sealed.mask if entry & P else entry for entry in entries]
    for gva in gvas:
        theirs = translate(plain.reader(), plain.form, gva)
        ours = translate(sealed.reader(), sealed.form, gva)
        assert ours._replace(private=False, steps=()) == theirs._replace(steps=())
        assert [step.level for step in ours.steps] == [step.level for step in theirs.steps]
        assert ours.private == (ours.gpa is not None)


@settings(max_examples=100, deadline=None)
@given(
    mode=st.sampled_from(MODES),
    cbit=st.one_of(st.none(), st.integers(32, 51)),
    noise=st.lists(st.integers(0, (1 << 64) - 1), min_size=1, max_size=8),
    start=st.integers(0, (1 << 32) + MIB2),
    nbytes=st.integers(0, 6 * MIB2),
)
def test_pieces_of_noise_equal_single_translations(
    mode: PagingMode, cbit: int | None, noise: list[int], start: int, nbytes: int
) -> None:
    tables = Tables(mode, cbit, next_gpa=0)
    others = [tables.new_table() for _ in range(3)]
    width = (1 << 32) - 1 if tables.narrow else (1 << 64) - 1
    for number, gpa in enumerate([tables.root, *others]):
        for index in range(len(tables.pages[gpa])):
            raw = noise[(index // 32 + number) % len(noise)] & ~0xF000 | index % 4 << 12
            tables.pages[gpa][index] = raw & width
    reader = tables.reader()
    at = start
    for number, piece in enumerate(translate_range(reader, tables.form, start, nbytes)):
        assert (piece.gva, piece.nbytes > 0) == (at, True)
        at += piece.nbytes
        if number % 16:
            continue  # one walk in sixteen, at both ends, is enough
        assert piece.translation == translate(reader, tables.form, piece.gva)
        last = translate(reader, tables.form, at - 1)
        assert (last.private, last.fault) == (piece.private, piece.translation.fault)
        assert last.gpa == (None if piece.gpa is None else piece.gpa + piece.nbytes - 1)
    assert at == start + nbytes
