"""What two views of a page prove, which pages are looked at, and when a report passes."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

from sevkvm.memory.source import Slot, SlotMap
from sevkvm.pages.classify import PageKind, PageMap
from sevkvm.verify.page import Expected, Views, judge
from sevkvm.verify.pagemap import Known
from sevkvm.verify.report import Check, Group, Outcome, Report, worst
from sevkvm.verify.require import _by_tables
from sevkvm.verify.samples import buffers, spread
from sevkvm.verify.tweak import TweakTest

if TYPE_CHECKING:
    from sevkvm.guest import Guest

PAGE = 4096
PASS, FAIL, SKIP = Outcome.PASS, Outcome.FAIL, Outcome.SKIP
ZEROS = bytes(PAGE)
TEXT = (b"some text of the guest, which is no noise whatever " * 90)[:PAGE]
OTHER = (b"other text, as a broken cipher might make it of that" * 90)[:PAGE]
NOISE, NOISE2 = random.Random(1).randbytes(PAGE), random.Random(2).randbytes(PAGE)
ONE_BLOCK = NOISE[:160] + TEXT[160:176] + NOISE[176:]


@pytest.mark.parametrize(
    ("host", "plain", "private", "known", "shared", "unknown"),
    [
        (NOISE, TEXT, PASS, PASS, FAIL, PASS),
        (NOISE, ZEROS, PASS, PASS, FAIL, PASS),
        (NOISE, NOISE2, SKIP, FAIL, SKIP, SKIP),
        (TEXT, NOISE, FAIL, FAIL, PASS, SKIP),
        (TEXT, OTHER, FAIL, FAIL, FAIL, FAIL),
        (TEXT, TEXT, FAIL, FAIL, FAIL, FAIL),  # not encrypted at all
        (NOISE, NOISE, FAIL, FAIL, FAIL, FAIL),  # the firmware returns ciphertext
        (ONE_BLOCK, TEXT, FAIL, FAIL, FAIL, FAIL),  # one block of plaintext shows
        (ZEROS, NOISE, FAIL, FAIL, PASS, SKIP),  # never written
        (ZEROS, ZEROS, FAIL, FAIL, FAIL, SKIP),
        (ZEROS, TEXT, FAIL, FAIL, FAIL, SKIP),
    ],
)
def test_two_views_of_a_page(
    host: bytes, plain: bytes, private: Outcome, known: Outcome, shared: Outcome, unknown: Outcome
) -> None:
    views = Views(host, plain)
    found = [judge(0, "page", views, expected).outcome for expected in Expected]
    assert found == [private, known, shared, unknown]


def test_pages_never_written_may_be_accepted() -> None:
    views = Views(ZEROS, NOISE)
    assert judge(0, "", views, Expected.PRIVATE, untouched_ok=True).outcome is SKIP
    assert judge(0, "", views, Expected.KNOWN, untouched_ok=True).outcome is FAIL
    assert judge(0, "", Views(TEXT, NOISE), Expected.PRIVATE, untouched_ok=True).outcome is FAIL


def fed(*pages: tuple[int, bytes, bytes]) -> Check:
    test = TweakTest()
    for gpa, host, plain in pages:
        test.add(gpa, Views(host, plain))
    return test.check()


def test_equal_plaintext_and_equal_ciphertext_at_two_addresses() -> None:
    check = fed((0x1000, NOISE, TEXT), (0x8000, NOISE, TEXT))
    assert check.outcome is FAIL
    assert "gpa 0x1000 and 0x8000" in check.evidence[0]
    # one block of it is enough, wherever in the page it is
    moved = NOISE2[:-16] + NOISE[:16]
    plain = bytes(PAGE - 16) + TEXT[:16]
    check = fed((0x1000, NOISE, TEXT), (0x8000, moved, plain))
    assert (check.outcome, check.evidence[1]) == (FAIL, "1 such blocks")
    assert "gpa 0x1000 and 0x8ff0" in check.evidence[0]


def test_a_tweak_is_seen_between_pages_only() -> None:
    assert fed((0x1000, NOISE, TEXT), (0x8000, NOISE2, TEXT)).outcome is PASS
    assert fed((0x1000, NOISE, ZEROS)).outcome is SKIP
    assert fed((0x1000, NOISE, TEXT), (0x8000, NOISE2, ZEROS)).outcome is SKIP
    assert fed().outcome is SKIP


def test_the_same_page_twice_is_no_second_address() -> None:
    assert fed((0x1000, NOISE, TEXT), (0x1000, NOISE, TEXT)).outcome is SKIP


def test_pages_that_are_not_encrypted_say_nothing_of_the_tweak() -> None:
    assert fed((0x1000, TEXT, TEXT), (0x8000, TEXT, TEXT)).outcome is SKIP
    assert fed((0x1000, ZEROS, NOISE), (0x8000, ZEROS, NOISE)).outcome is SKIP


@pytest.mark.parametrize(
    ("runs", "count", "found"),
    [
        ([], 4, []),
        ([(0x1000, 2 * PAGE)], 4, [0x1000, 0x2000]),
        ([(0, 100 * PAGE)], 4, [12 * PAGE, 37 * PAGE, 62 * PAGE, 87 * PAGE]),
        ([(0, 2 * PAGE), (1 << 32, 2 * PAGE)], 2, [PAGE, (1 << 32) + PAGE]),
        ([(0, PAGE), (1 << 32, 9 * PAGE)], 2, [(1 << 32) + PAGE, (1 << 32) + 6 * PAGE]),
        ([(0, 1 << 40)], 1, [1 << 39]),
    ],
)
def test_pages_spread_over_runs(runs: list[tuple[int, int]], count: int, found: list[int]) -> None:
    assert spread(runs, count) == found


def report(*checks: tuple[Outcome, bool]) -> Report:
    return Report((Group("", tuple(Check("", "", outcome, (), required) for outcome, required in checks)),))


@pytest.mark.parametrize(
    ("checks", "passed", "strictly"),
    [
        ([], False, False),
        ([(PASS, False)], False, False),  # nothing was required, so nothing was shown
        ([(PASS, True)], True, True),
        ([(PASS, True), (SKIP, False)], True, False),
        ([(PASS, True), (SKIP, True)], False, False),
        ([(PASS, True), (FAIL, False)], False, False),
        ([(SKIP, True)], False, False),
    ],
)
def test_when_a_report_passes(checks: list[tuple[Outcome, bool]], passed: bool, strictly: bool) -> None:
    told = report(*checks)
    assert (told.passed(), told.passed(strict=True)) == (passed, strictly)


def test_a_group_is_as_good_as_its_worst() -> None:
    assert report((PASS, True), (SKIP, False)).groups[0].outcome is PASS
    assert report((PASS, True), (SKIP, True)).groups[0].outcome is SKIP
    assert report((SKIP, False)).groups[0].outcome is SKIP
    assert report((SKIP, True), (FAIL, False)).groups[0].outcome is FAIL
    assert worst([]) is SKIP


MAP = PageMap(
    [
        (0x0000, 0x2000, PageKind.PRIVATE, True),
        (0x2000, 0x3000, PageKind.TABLE, True),
        (0x3000, 0x4000, PageKind.SHARED, False),
        (0x4000, 0x5000, PageKind.CONFLICT, True),
        (0x5000, 0x6000, PageKind.UNMAPPED, None),
        (0x8000, 0x9000, PageKind.PRIVATE, True),
    ]
)


@pytest.mark.parametrize(
    ("kind", "start", "end", "outcome"),
    [
        ("private", 0x0, 0x3000, PASS),
        ("private", 0x0, 0x4000, FAIL),
        ("private", 0x4000, 0x5000, FAIL),
        ("private", 0x5000, 0x6000, SKIP),
        ("private", 0x5000, 0x7000, FAIL),  # no RAM
        ("private", 0x6000, 0x8000, FAIL),
        ("private", 0x8000, 0xA000, FAIL),
        ("private", 0x7000, 0x9000, FAIL),
        ("shared", 0x3000, 0x4000, PASS),
        ("shared", 0x2000, 0x4000, FAIL),
        ("shared", 0x3000, 0x5000, FAIL),
    ],
)
def test_a_range_by_the_tables(kind: str, start: int, end: int, outcome: Outcome) -> None:
    assert _by_tables(MAP, kind, start, end)[0] is outcome


def test_the_firmwares_own_pages_are_no_buffers() -> None:
    slots = SlotMap([Slot(0, 0x200000, 0x7000_0000), Slot(0xFFFC0000, 0x40000, 0x8000_0000, "rom", True)])
    shared = [(0x9F000, 0xA1000), (0xE0000, 0x101000), (0x180000, 0x181000), (0xFFFC0000, 1 << 32)]
    known = Known(PageMap((gpa, end, PageKind.SHARED, False) for gpa, end in shared), ())
    found = buffers(cast("Guest", SimpleNamespace(slots=slots)), known)
    assert sorted(found) == [(0x9F000, PAGE), (0x100000, PAGE), (0x180000, PAGE)]
