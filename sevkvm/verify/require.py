"""``--require private=GPA:END`` and ``shared=``: every page by the tables, a bounded number by their contents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from sevkvm.abi.x86 import PAGE_MASK
from sevkvm.pages.classify import PageKind
from sevkvm.verify.memory import outcome_of, tally
from sevkvm.verify.page import Expected, examine
from sevkvm.verify.report import Check, Outcome, worst
from sevkvm.verify.samples import Run, spread

if TYPE_CHECKING:
    from sevkvm.guest import Guest
    from sevkvm.pages.classify import PageMap
    from sevkvm.verify.pagemap import Known

_WANTED: Final = {
    "private": frozenset({PageKind.PRIVATE, PageKind.TABLE}),
    "shared": frozenset({PageKind.SHARED}),
}


class Requirement(NamedTuple):
    """Guest-physical ``[start, end)`` must be ``kind``: ``private`` or ``shared``."""

    kind: str
    start: int
    end: int


def range_check(
    guest: Guest, known: Known, wanted: Requirement, count: int, *, untouched_ok: bool = False
) -> Check:
    """It is what it must be. A page that the range touches counts whole."""
    title = f"0x{wanted.start:x} to 0x{wanted.end:x} is {wanted.kind}"
    name = f"require-{wanted.kind}"
    start, end = wanted.start & ~PAGE_MASK, -(-wanted.end >> 12) << 12
    if known.pages is None:
        return Check(name, title, Outcome.SKIP, (known.why,), True)
    by_tables, told, runs = _by_tables(known.pages, wanted.kind, start, end)
    if known.why:  # a table that cannot be read may map it otherwise
        by_tables, told = worst([by_tables, Outcome.SKIP]), [*told, known.why]
    expected = Expected.PRIVATE if wanted.kind == "private" else Expected.SHARED
    findings = [
        examine(guest.memory, gpa, f"{wanted.kind} page", expected, untouched_ok=untouched_ok)[0]
        for gpa in spread(runs, count)
    ]
    outcome = worst([by_tables, outcome_of(findings)])
    return Check(name, title, outcome, (*told, *tally(findings)), True, tuple(findings))


def _by_tables(pages: PageMap, kind: str, start: int, end: int) -> tuple[Outcome, list[str], list[Run]]:
    """What the tables say of the whole range, and the RAM in it."""
    found: dict[PageKind | None, int] = {}
    first: dict[PageKind | None, int] = {}
    runs, at = [], start
    for run in pages.runs(start, end):
        if run.gpa > at:
            _count(found, first, None, at, run.gpa - at)
        _count(found, first, run.kind, run.gpa, run.nbytes)
        runs.append((run.gpa, run.nbytes))
        at = run.gpa + run.nbytes
    if at < end:
        _count(found, first, None, at, end - at)
    told = [
        f"{nbytes >> 12} pages are {each.value if each else 'no RAM'}, from gpa 0x{first[each]:x} on"
        for each, nbytes in found.items()
    ]
    others = set(found) - _WANTED[kind]
    if not others:
        return Outcome.PASS, told, runs
    # no known table maps it: it may be anything
    return (Outcome.SKIP if others == {PageKind.UNMAPPED} else Outcome.FAIL), told, runs


def _count(
    found: dict[PageKind | None, int],
    first: dict[PageKind | None, int],
    kind: PageKind | None,
    gpa: int,
    nbytes: int,
) -> None:
    found[kind] = found.get(kind, 0) + nbytes
    first.setdefault(kind, gpa)
