"""Listing an address space: leaves and runs in order, as records and as QEMU's text."""

from __future__ import annotations

import pytest

from sevkvm.native import EntryFlag
from sevkvm.paging.form import PagingForm, PagingMode
from sevkvm.paging.listing import Leaf, Listing, Run, UnreadableTable
from tests.support.tables import GIB1, KIB4, MIB2, PS, RW, US, P, Tables

KERNEL = 0xFFFF_8880_0000_0000
W, U, NX, PRIVATE = (
    int(flag) for flag in (EntryFlag.WRITABLE, EntryFlag.USER, EntryFlag.NX, EntryFlag.PRIVATE)
)
LEAF = int(EntryFlag.PRESENT | EntryFlag.LEAF)
LEVEL = (0, int(EntryFlag.LEVEL1), int(EntryFlag.LEVEL2), int(EntryFlag.LEVEL3))
C47 = 1 << 47


def small_guest(cbit: int | None = 47) -> Tables:
    tables = Tables(4, cbit)
    tables.map(0x1000, 0x9000)
    tables.map(0x2000, 0xA000, user=True, private=False)
    tables.map(MIB2, 5 * MIB2, MIB2)
    tables.map(0x7FFF_FFFF_F000, 0x5000)
    tables.map(0xFFFF_8000_0000_0000, 0x6000)
    tables.map(KERNEL, 0, GIB1, nx=True)
    return tables


def test_leaves_in_order_with_their_entries() -> None:
    tables = small_guest()
    listing = Listing(tables.reader(), tables.form)
    assert list(listing.leaves()) == [
        Leaf(0x1000, 0x9000, KIB4, 1, C47 | 0x9003, LEAF | W | PRIVATE | LEVEL[1]),
        Leaf(0x2000, 0xA000, KIB4, 1, 0xA007, LEAF | W | U | LEVEL[1]),
        Leaf(MIB2, 5 * MIB2, MIB2, 2, C47 | 5 * MIB2 | 0x83, LEAF | W | PRIVATE | LEVEL[2]),
        Leaf(0x7FFF_FFFF_F000, 0x5000, KIB4, 1, C47 | 0x5003, LEAF | W | PRIVATE | LEVEL[1]),
        Leaf(0xFFFF_8000_0000_0000, 0x6000, KIB4, 1, C47 | 0x6003, LEAF | W | PRIVATE | LEVEL[1]),
        Leaf(KERNEL, 0, GIB1, 3, 1 << 63 | C47 | 0x83, LEAF | W | NX | PRIVATE | LEVEL[3]),
    ]
    report = listing.report
    assert (report.tables, report.leaves, report.limits_hit) == (len(tables.pages), 6, ())


def test_runs_and_what_tells_them_apart() -> None:
    tables = small_guest()
    listing = Listing(tables.reader(), tables.form)
    assert list(listing.runs()) == [
        Run(0x1000, 0x1000, W),
        Run(0x2000, 0x1000, W | U),
        Run(MIB2, MIB2, W),
        Run(0x7FFF_FFFF_F000, 0x1000, W),
        Run(0xFFFF_8000_0000_0000, 0x1000, W),
        Run(KERNEL, GIB1, W),
    ]
    assert listing.report.leaves == 6
    assert next(listing.runs(0)) == Run(0x1000, 0x2000, 0)
    assert next(listing.runs(PRIVATE | LEVEL[1] | LEVEL[2])) == Run(0x1000, 0x1000, PRIVATE | LEVEL[1])


@pytest.mark.parametrize("cbit", [None, 32, 47, 51])
def test_text_as_the_monitor_prints_it(cbit: int | None) -> None:
    tables = small_guest(cbit)
    listing = Listing(tables.reader(), tables.form)
    assert b"".join(listing.leaves_text()).decode() == (
        "0000000000001000: 0000000000009000 --------W\n"
        "0000000000002000: 000000000000a000 -------UW\n"
        "0000000000200000: 0000000000a00000 --P-----W\n"
        "00007ffffffff000: 0000000000005000 --------W\n"
        "ffff800000000000: 0000000000006000 --------W\n"
        "ffff888000000000: 0000000000000000 X-P-----W\n"
    )
    # a run goes on from the lower half into the upper one
    assert b"".join(listing.runs_text()).decode() == (
        "0000000000001000-0000000000002000 0000000000001000 -rw\n"
        "0000000000002000-0000000000003000 0000000000001000 urw\n"
        "0000000000200000-0000000000400000 0000000000200000 -rw\n"
        "00007ffffffff000-ffff800000001000 0000000000002000 -rw\n"
        "ffff888000000000-ffff888040000000 0000000040000000 -rw\n"
    )


def test_every_letter() -> None:
    tables = Tables(4)
    for bit in (1, 2, 3, 4, 5, 6, 7, 8, 63):
        tables.set_entry(bit * KIB4, 1, 0x5000 | P | 1 << bit)
        tables.set_entry((bit + 1) * MIB2, 2, 10 * MIB2 | P | PS | 1 << bit)
    lines = b"".join(Listing(tables.reader(), tables.form).leaves_text()).decode().splitlines()
    assert [line.split()[2] for line in lines] == [
        *("--------W", "-------U-", "------T--", "-----C---", "----A----", "---D-----"),
        *("---------", "-G-------", "X--------"),  # bit 7 of a 4 KiB page is no P
        *("--P-----W", "--P----U-", "--P---T--", "--P--C---", "--P-A----", "--PD-----"),
        *("--P------", "-GP------", "X-P------"),
    ]


@pytest.mark.parametrize(
    ("levels", "line"),
    [
        (4, b"fffffffffffff000-0001000000000000 0000000000001000 -rw\n"),
        (5, b"fffffffffffff000-0200000000000000 0000000000001000 -rw\n"),
    ],
)
def test_the_last_page_of_all(levels: int, line: bytes) -> None:
    tables = Tables(levels)
    page = tables.map(0xFFFF_FFFF_FFFF_F000, 0x5000)
    listing = Listing(tables.reader(), tables.form)
    assert b"".join(listing.runs_text()) == line
    assert list(listing.runs()) == [Run(page.gva, KIB4, W)]
    assert [leaf.gva for leaf in listing.leaves()] == [page.gva]


def test_rights_come_down_the_walk() -> None:
    tables = Tables(4)
    for gva in (0, MIB2, 2 * MIB2):
        tables.map(gva, 0x5000, user=True)
    tables.set_entry(0, 2, tables.get_entry(0, 2) & ~RW)
    tables.set_entry(MIB2, 2, tables.get_entry(MIB2, 2) & ~US | 1 << 63)
    listing = Listing(tables.reader(), tables.form)
    assert [run.flags for run in listing.runs(W | U | NX)] == [U, W | NX, W | U]
    assert [leaf.flags & (W | U | NX) for leaf in listing.leaves()] == [U, W | NX, W | U]
    # the letters are the leaf's own
    assert b"".join(listing.leaves_text()).count(b"UW\n") == 3


def test_unreadable_tables_are_told() -> None:
    tables = Tables(4, 47)
    tables.map(0x1000, 0x5000)
    tables.set_entry(MIB2, 2, 0xFEE0_0000 | P | tables.mask)
    tables.set_entry(0xFFFF_8000_0000_0000, 4, 0xFEE0_0000 | P | tables.mask)
    listing = Listing(tables.reader(), tables.form)
    assert [leaf.gva for leaf in listing.leaves()] == [0x1000]
    assert listing.report.unreadable == [
        UnreadableTable(1, 0xFEE0_0000, MIB2),
        UnreadableTable(3, 0xFEE0_0000, 0xFFFF_8000_0000_0000),
    ]
    assert listing.report.unreadable_count == 2


def test_paging_off_maps_nothing_by_tables() -> None:
    reader = Tables().reader()
    listing = Listing(reader, PagingForm(PagingMode.OFF, 0))
    assert not list(listing.leaves())
    assert not list(listing.runs_text())
    assert not reader.fetched
