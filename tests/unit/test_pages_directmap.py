"""The kernel's direct map: found among other mappings, and what it says of pages that are mapped both ways."""

from __future__ import annotations

import random

import pytest

from sevkvm.memory.source import Slot, SlotMap
from sevkvm.pages.classify import PageKind, classify
from sevkvm.pages.directmap import DirectMap, find_direct_map
from tests.support.tables import GIB1, KIB4, MIB2, Tables

MIB1 = 1 << 20
LINUX = {4: 0xFFFF_8880_0000_0000, 5: 0xFF11_0000_0000_0000}


def slots(*ranges: tuple[int, int]) -> SlotMap:
    return SlotMap(Slot(gpa, nbytes, 0x7F00_0000_0000 + gpa) for gpa, nbytes in ranges)


def linux(levels: int, cbit: int, nbytes: int, base: int) -> Tables:
    """Tables as Linux has them: a direct map, the kernel's image, and scattered pages above it; tables at 1 MiB."""
    tables = Tables(levels, cbit, next_gpa=MIB1)
    tables.next_gpa += KIB4  # page-table isolation has a second root there
    for gpa in range(0, nbytes, MIB2):
        tables.map(base + gpa, gpa, MIB2)
    for gpa in range(8 * MIB1, 16 * MIB1, MIB2):
        tables.map(0xFFFF_FFFF_8100_0000 + gpa - 8 * MIB1, gpa, MIB2)
    shuffled = random.Random(4).sample(range(nbytes // KIB4), 64)
    for number, frame in enumerate(shuffled):
        tables.map(base + (1 << 40) + number * KIB4, frame * KIB4)
    return tables


@pytest.mark.parametrize("levels", [4, 5])
@pytest.mark.parametrize("shift", [0, 3, 700])  # in GiB: KASLR moves it, over an edge of 512 GiB too
def test_it_is_found_wherever_it_starts(levels: int, shift: int) -> None:
    base = LINUX[levels] + shift * GIB1
    tables = linux(levels, 51, 64 * MIB1, base)
    for ram in (slots((0, 64 * MIB1)), slots((0, 0xA0000), (MIB1, 63 * MIB1))):
        assert find_direct_map(tables.reader(), tables.form, ram) == DirectMap(base, GIB1)


def test_it_may_lie_across_two_top_entries() -> None:
    base = 0xFFFF_8880_0000_0000 + 511 * GIB1
    tables = Tables(4, 51, next_gpa=1 << 40)
    for gpa in range(0, 3 * GIB1, GIB1):
        tables.map(base + gpa, gpa, GIB1, private=gpa != 2 * GIB1)
    tables.map(0x1000, 2 * GIB1, private=True)
    pages = classify(tables.reader(), [tables.form], slots((0, 3 * GIB1)))
    assert pages.direct_maps == (DirectMap(base, 3 * GIB1),)
    assert [tuple(run) for run in pages.runs()] == [
        (0, 2 * GIB1, True, "private"),
        (2 * GIB1, KIB4, False, "conflict"),
        (2 * GIB1 + KIB4, GIB1 - KIB4, False, "shared"),
    ]


@pytest.mark.parametrize("base", [0x7000_0000_0000, 0xFFFF_8880_0020_0000])
def test_a_process_or_an_odd_address_is_no_direct_map(base: int) -> None:
    tables = Tables(4, 51, next_gpa=MIB1)
    for gpa in range(0, 64 * MIB1, MIB2):
        tables.map(base + gpa, gpa, MIB2)
    assert find_direct_map(tables.reader(), tables.form, slots((0, 64 * MIB1))) is None


def test_a_part_of_ram_is_no_direct_map() -> None:
    tables = linux(4, 51, 16 * MIB1, LINUX[4])
    assert find_direct_map(tables.reader(), tables.form, slots((0, 64 * MIB1))) is None


@pytest.mark.parametrize("levels", [4, 5])
@pytest.mark.parametrize("direct_private", [True, False])
def test_the_direct_map_says_how_a_conflict_is_read(levels: int, direct_private: bool) -> None:
    base = LINUX[levels]
    tables = Tables(levels, 47, next_gpa=4 * MIB1)
    for gpa in range(0, 8 * MIB1, KIB4):
        tables.map(base + gpa, gpa, private=direct_private or gpa != 0x5000)
    tables.map(0x40_0000, 0x5000, private=not direct_private)
    tables.map(0x40_1000, 0x6000, private=True)
    pages = classify(tables.reader(), [tables.form], slots((0, 8 * MIB1)))
    assert pages.kind(0x5000) is PageKind.CONFLICT
    assert pages.is_private(0x5000) is direct_private
    assert pages.conflicts == [(0x5000, KIB4)]
    assert pages.kind(0x6000) is PageKind.PRIVATE


def test_a_table_inside_and_outside_of_the_window_counts_on_both_sides() -> None:
    """The PDP table of the direct map stands a second time in the top table: nothing of it may be lost."""
    base = LINUX[4]
    tables = Tables(4, 51, next_gpa=32 * MIB1)
    for gpa in range(0, 64 * MIB1, MIB2):
        tables.map(base + gpa, gpa, MIB2, private=gpa != 8 * MIB1)
    tables.set_entry(0x1000_0000_0000, 4, tables.get_entry(base, 4))
    reader = tables.reader()
    pages = classify(reader, [tables.form], slots((0, 64 * MIB1)))
    assert pages.kind(8 * MIB1) is PageKind.SHARED
    assert not pages.conflicts
    assert pages.scan is not None
    assert list(pages.scan.table_gpas) == sorted(tables.pages)


def test_every_table_is_fetched_once() -> None:
    tables = linux(4, 51, 64 * MIB1, LINUX[4] + 5 * GIB1)
    tables.map(0x40_0000, 3 * MIB2, private=False)
    reader = tables.reader()
    pages = classify(reader, [tables.form], slots((0, 64 * MIB1)))
    assert set(reader.fetched) == set(tables.pages)
    assert set(reader.fetched.values()) == {1}
    assert pages.scan is not None
    assert list(pages.scan.table_gpas) == sorted(tables.pages)
    assert sum(pages.scan.tables_by_level.values()) == len(tables.pages)
    assert pages.scan.pages_by_level == {1: 65, 2: 36}


def test_the_kernels_tables_lie_below_those_of_user_mode() -> None:
    """Page-table isolation: a vCPU that was stopped in user mode has CR3 bit 12 set."""
    kernel = linux(4, 51, 64 * MIB1, LINUX[4])
    root = kernel.root + KIB4
    user = Tables(4, 51, next_gpa=root)
    user.next_gpa = 40 * MIB1
    user.map(0x40_0000, 20 * MIB1)
    reader = kernel.reader()
    reader.pages |= user.reader().pages
    pages = classify(reader, [user.form], slots((0, 64 * MIB1)))
    assert [each.root_gpa for each in pages.forms] == [root, kernel.root]
    assert pages.direct_maps == (DirectMap(LINUX[4], GIB1),)
    assert pages.kind(30 * MIB1) is PageKind.PRIVATE
    assert pages.kind(root) is PageKind.TABLE


def test_a_page_below_a_root_that_is_no_table_is_left_alone() -> None:
    tables = Tables(4, 51, next_gpa=MIB1 + KIB4)
    tables.map(0x40_0000, 0x5000)
    reader = tables.reader()
    reader.pages[MIB1] = bytes(range(256)) * 16
    pages = classify(reader, [tables.form], slots((0, 64 * MIB1)))
    assert [each.root_gpa for each in pages.forms] == [tables.root]
    assert pages.kind(MIB1) is PageKind.UNMAPPED


def test_hostile_tables_are_bounded() -> None:
    """Every table is every other one: the root leads to itself 512 times, at each level."""
    tables = Tables(5, 51)
    tables.pages[tables.root] = [tables.root | tables.link(5)] * 512
    reader = tables.reader()
    pages = classify(reader, [tables.form], slots((0, 64 * MIB1)))
    assert pages.kind(tables.root) is PageKind.TABLE
    assert pages.direct_maps == ()
    assert sum(reader.fetched.values()) == 1
