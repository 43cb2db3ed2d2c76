"""Every kind of page there is, page by page against what the test built; in both long modes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from sevkvm import errors
from sevkvm.memory.policy import SevInfo, SevKind
from sevkvm.memory.source import Slot, SlotMap
from sevkvm.pages.pagemap import PageKind, PageMap
from sevkvm.pages.survey import Survey, by_tables, complete, survey
from tests.support.tables import KIB4, MIB2, Tables

MIB1 = 1 << 20
BASE = {4: 0xFFFF_8880_0000_0000, 5: 0xFF11_0000_0000_0000}
HVA = 0x7F00_0000_0000
ROM_GPA, HIGH_GPA = 0xFFFC_0000, 1 << 32
SLOTS = SlotMap(
    [
        Slot(0, 0xA0000, HVA),
        Slot(MIB1, 15 * MIB1, HVA + MIB1),
        Slot(ROM_GPA, 0x40000, HVA + ROM_GPA, "rom", readonly=True),
        Slot(HIGH_GPA, 4 * MIB1, HVA + HIGH_GPA),
    ]
)
ZERO = {2, 9, 20, 21, 300, 2048 + 512, 2048 + 513}  # page numbers; some of them shared, tables, in conflict
ABSENT = range(3000, 3400)
UNKNOWN = range(3400, 3410)


class Memory:
    """What the host sees: noise, and zeros in some pages; the gpa is the place. Absent pages must not be read."""

    def __init__(self, tables: Tables) -> None:
        self.reader = tables.reader()
        self.read_tables = self.reader.read_tables
        self.slots = SLOTS

    def readinto(self, gpa: int, private: bool, buffer: memoryview, ahead: int = 0) -> int:
        assert not private, "untouched pages are told without decrypting"
        noise = random.Random(gpa)
        for at in range(0, len(buffer), KIB4):
            page = (gpa + at) // KIB4
            assert page not in ABSENT
            assert page not in UNKNOWN
            buffer[at : at + KIB4] = bytes(KIB4) if page in ZERO else noise.randbytes(16) + bytes(KIB4 - 16)
        return len(buffer)


class Backing:
    def ranges(self, hva: int, nbytes: int) -> Iterator[tuple[int, int, bool | None]]:
        for at in range(hva, hva + nbytes, KIB4):
            page = (at - HVA) // KIB4
            yield at, KIB4, False if page in ABSENT else None if page in UNKNOWN else True


def guest_of(tables: Tables, **settings: Any) -> Any:
    """As much of a Guest as a survey asks for."""
    info = SevInfo(SevKind.SEV if tables.cbit else SevKind.NONE, cbit_pos=tables.cbit)
    parts = {
        "slots": SLOTS,
        "memory": Memory(tables),
        "backing": Backing(),
        "sev": info,
        "forms": lambda: [tables.form],
    }
    return SimpleNamespace(**(parts | settings))


def surveyed(guest: Any, **options: Any) -> Survey:
    return survey(guest, by_tables(guest), **options)


def build(levels: int, cbit: int | None) -> tuple[Tables, dict[int, str]]:
    """Tables as a SEV Linux has them, and the kind of each page by its number."""
    tables = Tables(levels, cbit, next_gpa=8 * MIB1)
    base, truth = BASE[levels], {}
    shared = {5, 6, 20, *range(1024, 1100), 2500, HIGH_GPA // KIB4 + 7}
    unmapped = {300, 301, *range(3390, 3420)}
    both = {
        21: True,
        1500: True,
        1024: False,
    }  # by the direct map private or shared; and the other way elsewhere
    pages = [page for slot in SLOTS for page in range(slot.gpa // KIB4, slot.end // KIB4)]
    large = set()
    for page in pages:
        first = page // 512 * 512
        if page in range(ROM_GPA // KIB4, (ROM_GPA + 0x40000) // KIB4):
            truth[page] = "rom"
            continue
        special = shared | unmapped | set(both) | set(range(512))
        if not special.intersection(range(first, first + 512)):
            large.add(first)  # no page of it is out of line: a huge page
        elif page not in unmapped:
            tables.map(base + page * KIB4, page * KIB4, private=page not in shared and cbit is not None)
        truth[page] = "unmapped" if page in unmapped else "shared" if page in shared else "private"
    for first in large:
        tables.map(base + first * KIB4, first * KIB4, MIB2)
    for number, (page, private) in enumerate(both.items()):
        tables.map(0x40_0000 + number * KIB4, page * KIB4, private=not private and cbit is not None)
        truth[page] = "conflict"
    tables.map(0x80_0000, ROM_GPA, private=False)
    for page in truth:
        if cbit is None and truth[page] in ("private", "shared", "conflict"):
            truth[page] = "plain"
        if (page in ZERO or page in ABSENT) and truth[page] in ("private", "plain", "unmapped"):
            truth[page] = "untouched"
    truth |= {gpa // KIB4: "table" for gpa in tables.pages}
    return tables, truth


def kinds(pages: PageMap) -> dict[int, str]:
    return {
        page: kind.value
        for gpa, nbytes, kind in pages.kinds()
        for page in range(gpa // KIB4, (gpa + nbytes) // KIB4)
        if kind is not PageKind.HOLE
    }


@pytest.mark.parametrize("levels", [4, 5])
@pytest.mark.parametrize("cbit", [47, 51, None])
def test_every_page_is_what_it_was_made(levels: int, cbit: int | None) -> None:
    tables, truth = build(levels, cbit)
    found = surveyed(guest_of(tables))
    assert kinds(found.pages) == truth
    assert found.looked
    wanted = {"rom", "untouched", "unmapped", "table"} | (
        {"private", "shared", "conflict"} if cbit else {"plain"}
    )
    assert set(truth.values()) == wanted
    holes = [(gpa, gpa + nbytes) for gpa, nbytes, kind in found.pages.kinds() if kind is PageKind.HOLE]
    assert holes == [(0xA0000, MIB1), (16 * MIB1, ROM_GPA)]
    # the direct map decides how a page that is mapped both ways is read
    if cbit:
        assert [found.pages.is_private(page * KIB4) for page in (21, 1500, 1024)] == [True, True, False]
        assert found.pages.conflicts == [(page * KIB4, KIB4) for page in (21, 1024, 1500)]


def test_every_table_is_read_once_and_nothing_is_decrypted() -> None:
    tables, _ = build(4, 51)
    guest = guest_of(tables)
    found = surveyed(guest)
    assert set(guest.memory.reader.fetched.values()) == {1}
    assert found.pages.scan is not None
    assert list(found.pages.scan.table_gpas) == sorted(tables.pages)


def test_without_the_hosts_view_nothing_is_untouched() -> None:
    tables, truth = build(4, 51)
    for options, settings in (({"look": False}, {}), ({}, {"backing": None})):
        found = surveyed(guest_of(tables, **settings), **options)
        assert not found.looked
        assert PageKind.UNTOUCHED not in found.pages.totals()
        known = {page: kind for page, kind in truth.items() if kind != "untouched"}
        assert known.items() <= kinds(found.pages).items()


def test_progress_ends_where_memory_ends() -> None:
    told: list[tuple[int, int]] = []
    tables, _ = build(4, 51)
    surveyed(guest_of(tables), progress=lambda done, total: told.append((done, total)))
    ram = sum(slot.nbytes for slot in SLOTS if not slot.readonly)
    assert told == sorted(told)
    assert told[-1] == (ram, ram)


def refuse() -> Any:
    raise errors.RegistersUnavailable("no registers")


@pytest.mark.parametrize(("forms", "why"), [(refuse, "no registers"), (list, "no vCPU uses page tables")])
def test_without_page_tables(forms: Callable[[], Any], why: str) -> None:
    tables, _ = build(4, 51)
    found = surveyed(guest_of(tables, forms=forms))
    assert found.why_no_tables == why
    assert set(found.pages.totals()) == {PageKind.UNMAPPED, PageKind.UNTOUCHED, PageKind.ROM, PageKind.HOLE}


def test_memory_that_cannot_be_read_is_not_untouched() -> None:
    tables, _ = build(4, 51)
    guest = guest_of(tables)
    guest.memory.readinto = lambda gpa, private, buffer, ahead=0: 0
    untouched = [page for page, kind in kinds(surveyed(guest).pages).items() if kind == "untouched"]
    assert set(untouched) <= set(ABSENT)
    assert untouched


def test_a_page_table_and_a_conflict_in_rom_are_told() -> None:
    base = PageMap(
        [
            (0, KIB4, PageKind.TABLE, True),
            (KIB4, 2 * KIB4, PageKind.CONFLICT, False),
            (2 * KIB4, 4 * KIB4, PageKind.PRIVATE, True),
        ]
    )
    slots = SlotMap([Slot(0, 4 * KIB4, HVA, readonly=True)])
    pages = complete(base, slots)
    assert [kind.value for _, _, kind in pages.kinds()] == ["table", "conflict", "rom"]
    assert [pages.is_private(page * KIB4, False) for page in range(4)] == [True, False, True, True]
