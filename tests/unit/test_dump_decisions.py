"""What is told of each page after a dump: tables that were stripped, what ``--exclude`` left out, parts of pages."""

from __future__ import annotations

from array import array

from sevkvm.dump import CbitMode, CbitOutcome, DumpFormat, DumpResult, Hole, HoleReason, Unmapped
from sevkvm.dump.decisions import Decision, ReadAs, decisions
from sevkvm.dump.pieces import Piece
from sevkvm.dump.plan import Placed
from sevkvm.memory.source import Slot, SlotMap
from sevkvm.pages.pagemap import PageKind, PageMap

PAGE = 4096
SLOTS = SlotMap([Slot(0, 8 * PAGE, 0x7F00_0000_0000), Slot(16 * PAGE, 2 * PAGE, 0x7F00_1000_0000)])
PRIVATE = PageMap([(0, 8 * PAGE, PageKind.PRIVATE, True), (16 * PAGE, 18 * PAGE, PageKind.UNMAPPED, None)])
HOLE = Decision(8 * PAGE, 8 * PAGE, PageKind.HOLE, ReadAs.NONE)


def result(
    *holes: Hole, ranges=((0, 8 * PAGE), (16 * PAGE, 18 * PAGE)), tables=(), excluded=()
) -> DumpResult:
    placed = tuple(Placed(Piece(gpa, gpa, gpa, end - gpa), gpa) for gpa, end in ranges)
    cbit = CbitOutcome(CbitMode.STRIP, array("Q", tables))
    return DumpResult(DumpFormat.KDUMP, 0, 0, placed, holes, 0, None, False, cbit, None, None, {}, excluded)


def told(made: DumpResult, unmapped: Unmapped = Unmapped.PRIVATE) -> list[Decision]:
    return list(decisions(PRIVATE, SLOTS, made, unmapped))


def test_what_was_stripped_is_told_though_no_vcpu_runs_on_it():
    assert told(result(tables=[2 * PAGE, 3 * PAGE])) == [
        Decision(0, 2 * PAGE, PageKind.PRIVATE, ReadAs.PRIVATE),
        Decision(2 * PAGE, 2 * PAGE, PageKind.PRIVATE, ReadAs.TABLE),
        Decision(4 * PAGE, 4 * PAGE, PageKind.PRIVATE, ReadAs.PRIVATE),
        HOLE,
        Decision(16 * PAGE, 2 * PAGE, PageKind.UNMAPPED, ReadAs.PRIVATE),
    ]


def test_what_was_excluded_is_not_in_the_file():
    found = told(result(excluded=((PAGE, 8 * PAGE), (17 * PAGE, 18 * PAGE))), Unmapped.SHARED)
    assert found == [
        Decision(0, PAGE, PageKind.PRIVATE, ReadAs.PRIVATE),
        Decision(PAGE, 7 * PAGE, PageKind.PRIVATE, ReadAs.NONE),
        HOLE,
        Decision(16 * PAGE, PAGE, PageKind.UNMAPPED, ReadAs.SHARED),
        Decision(17 * PAGE, PAGE, PageKind.UNMAPPED, ReadAs.NONE),
    ]


def test_a_part_of_a_page_is_not_the_page():
    lost = Hole(5 * PAGE + 100, 8, HoleReason.UNREADABLE)
    found = told(result(lost, ranges=((PAGE + 1, 2 * PAGE + 5), (2 * PAGE + 5, 7 * PAGE - 1))))
    assert [(each.gpa, each.nbytes) for each in found if each.read_as is ReadAs.PRIVATE] == [
        (2 * PAGE, 3 * PAGE)
    ]
