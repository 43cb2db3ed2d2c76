"""``DumpOptions.virtual``: ELF segments at virtual addresses that share the bytes of the physical ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from hypothesis import given
from hypothesis import strategies as st

from sevkvm import errors
from sevkvm.dump import CbitMode, DumpFormat, DumpOptions, Unmapped, dump_guest, prepare
from sevkvm.dump import views as module
from sevkvm.dump.views import View, _united
from sevkvm.memory.policy import SevInfo, SevKind
from tests.support.fakeguest import PAGE, FakeGuest, ListedPages, UniformPages, pattern
from tests.support.tables import MIB2, RW, US, P, Tables

LOW, HIGH = pattern(16 * PAGE), pattern(8 * PAGE, seed=2)
HIGH_GPA = 0x200000
KERNEL = 0xFFFF_8880_0000_0000
USER = 0x40_0000


class Guest(FakeGuest):
    """Its vCPUs run on these tables, one after the other."""

    spaces: tuple[Tables, ...] = ()

    def forms(self):
        return [tables.form for tables in self.spaces]


def guest_of(*spaces: Tables, **rest) -> Guest:
    guest = Guest({0: LOW, HIGH_GPA: HIGH}, states=[], **rest)
    guest.spaces = spaces
    merged = replace(spaces[0], pages={gpa: page for each in spaces for gpa, page in each.pages.items()})
    guest.memory.tables = merged
    return guest


def dump(guest: Guest, path: Path, pages=None, **options):
    options = DumpOptions(DumpFormat.ELF, virtual=True, **options)
    return dump_guest(guest, options, pages or UniformPages(), prepare(str(path)))


def loads(path: Path) -> list[tuple[int, int, bytes]]:
    with path.open("rb") as file:
        return [
            (each["p_vaddr"], each["p_paddr"], each.data()) for each in ELFFile(file).iter_segments("PT_LOAD")
        ]


PHYSICAL = [(0, 0, LOW), (HIGH_GPA, HIGH_GPA, HIGH)]


@pytest.mark.parametrize("levels", [4, 5])
@pytest.mark.parametrize("cbit_pos", [None, 47, 51])
def test_pages_that_continue_each_other_are_one_segment(tmp_path, levels, cbit_pos):
    tables = Tables(levels, cbit_pos)
    for at in range(0, 4 * PAGE, PAGE):
        tables.map(KERNEL + at, 2 * PAGE + at)
    tables.map(KERNEL + 4 * PAGE, HIGH_GPA)  # next in gva, not in gpa
    tables.map(KERNEL + 9 * PAGE, HIGH_GPA + PAGE)  # next in gpa, not in gva
    kind = SevKind.NONE if cbit_pos is None else SevKind.SEV
    guest = guest_of(tables, sev=SevInfo(kind, cbit_pos=cbit_pos))
    dump(guest, tmp_path / "core", cbit=CbitMode.KEEP)
    assert loads(tmp_path / "core") == [
        (KERNEL, 2 * PAGE, LOW[2 * PAGE : 6 * PAGE]),
        (KERNEL + 4 * PAGE, HIGH_GPA, HIGH[:PAGE]),
        (KERNEL + 9 * PAGE, HIGH_GPA + PAGE, HIGH[PAGE : 2 * PAGE]),
        *PHYSICAL,
    ]
    assert (tmp_path / "core").stat().st_size < 32 * PAGE + 0x20000  # no byte twice


def test_a_large_page_is_cut_to_memory(tmp_path):
    tables = Tables()
    tables.map(KERNEL, 0, MIB2)
    tables.map(KERNEL + MIB2, HIGH_GPA, MIB2)
    dump(guest_of(tables), tmp_path / "core")
    assert loads(tmp_path / "core") == [(KERNEL, 0, LOW), (KERNEL + MIB2, HIGH_GPA, HIGH), *PHYSICAL]


def test_where_vcpus_differ_the_first_counts(tmp_path):
    one, two = Tables(), Tables(next_gpa=0x90_0000)
    one.map(USER, 0)
    one.map(KERNEL, PAGE)
    two.map(USER, HIGH_GPA)
    two.map(USER + PAGE, HIGH_GPA + PAGE)
    two.map(KERNEL, PAGE)
    dump(guest_of(one, two), tmp_path / "core")
    assert loads(tmp_path / "core")[:-2] == [
        (USER, 0, LOW[:PAGE]),
        (USER + PAGE, HIGH_GPA + PAGE, HIGH[PAGE : 2 * PAGE]),
        (KERNEL, PAGE, LOW[PAGE : 2 * PAGE]),
    ]


def naive(first: list[View], second: list[View]) -> dict[int, int]:
    found = {}
    for gva, gpa, nbytes in (*second, *first):
        found |= {gva + at: gpa + at for at in range(nbytes)}
    return found


@st.composite
def ascending(draw, base: int) -> list[View]:
    found, at = [], 0
    for gap, nbytes in draw(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 5)), max_size=6)):
        at += gap
        found.append(View(at, base + draw(st.integers(0, 50)), nbytes))
        at += nbytes
    return found


@given(ascending(1000), ascending(2000))
def test_united_is_the_second_written_over_by_the_first(first, second):
    found = _united(first, second)
    flat = [gva + at for gva, _, nbytes in found for at in range(nbytes)]
    assert flat == sorted(set(flat))
    assert naive(found, []) == naive(first, second)


def test_what_is_left_out_or_lost_is_in_no_segment(tmp_path):
    tables = Tables()
    for at in range(0, 16 * PAGE, PAGE):
        tables.map(KERNEL + at, at)
    pages = ListedPages(
        (0, 2 * PAGE, False, "shared"),
        (2 * PAGE, PAGE, False, "unmapped"),
        (3 * PAGE, 1 << 30, False, "shared"),
    )
    guest = guest_of(tables, bad_pages={5 * PAGE})
    result = dump(guest, tmp_path / "core", pages, unmapped=Unmapped.SKIP)
    assert [(hole.address, hole.zero_filled) for hole in result.holes if hole.nbytes == PAGE] == [
        (2 * PAGE, False),
        (5 * PAGE, False),
    ]
    parts = [(0, 2 * PAGE), (3 * PAGE, 5 * PAGE), (6 * PAGE, 16 * PAGE)]
    low = [(start, start, LOW[start:end]) for start, end in parts]
    assert loads(tmp_path / "core") == [
        *((KERNEL + gva, gpa, data) for gva, gpa, data in low),
        *low,
        PHYSICAL[1],
    ]


def test_a_hole_that_splits_more_views_than_there_is_room_for_is_zeros(tmp_path, monkeypatch):
    monkeypatch.setattr("sevkvm.dump.elf.SPARE_PHDRS", 3)
    tables = Tables()
    for copy in range(4):
        for at in range(0, 3 * PAGE, PAGE):
            tables.map(KERNEL + copy * MIB2 + at, at)
    guest = guest_of(tables, bad_pages={PAGE})
    result = dump(guest, tmp_path / "core")
    (lost,) = (hole for hole in result.holes if hole.address == PAGE)
    assert lost.zero_filled
    zeros = LOW[:PAGE] + bytes(PAGE) + LOW[2 * PAGE : 3 * PAGE]
    assert loads(tmp_path / "core")[:-2] == [(KERNEL + copy * MIB2, 0, zeros) for copy in range(4)]


def test_a_bomb_is_refused_before_a_file_exists(tmp_path, monkeypatch):
    """One page of tables that maps 512**4 pages."""
    monkeypatch.setattr(module, "MAX_LEAVES", 1 << 16)
    tables = Tables()
    tables.pages[tables.root] = [tables.root | P | RW | US] * 512
    with pytest.raises(errors.UsageError, match="more ranges than") as error:
        dump(guest_of(tables), tmp_path / "core")
    assert "--gva" in error.value.help
    assert list(tmp_path.iterdir()) == []


def test_too_many_ranges_are_refused(tmp_path, monkeypatch):
    tables = Tables()
    for at in range(0, 40 * PAGE, PAGE):
        tables.map(KERNEL + at, 0)
    monkeypatch.setattr("sevkvm.abi.elf.MAX_PHDRS", 40)
    with pytest.raises(errors.UsageError, match="program headers"):
        dump(guest_of(tables), tmp_path / "core")
    assert list(tmp_path.iterdir()) == []


def test_without_page_tables_there_is_nothing_to_show(tmp_path):
    guest = FakeGuest({0: LOW}, states=[])  # no forms
    with pytest.raises(errors.UsageError, match="no vCPU uses page tables"):
        dump(guest, tmp_path / "core")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("rest", [{"format": DumpFormat.RAW}, {"gva": (0, PAGE)}])
def test_what_it_cannot_be_combined_with(tmp_path, rest):
    options = DumpOptions(**{"format": DumpFormat.ELF, "virtual": True, **rest})
    with pytest.raises(errors.UsageError, match=r"--virtual and .* exclude each other"):
        dump_guest(guest_of(Tables()), options, UniformPages(), prepare(str(tmp_path / "x")))
