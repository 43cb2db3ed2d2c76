"""What became of a guest's pages between two moments: for people, as JSON and as CSV."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sevkvm.abi.x86 import PAGE_NBYTES
from sevkvm.cli.pages_report import Sum
from sevkvm.cli.render import hexadecimal, print_table, size
from sevkvm.pages.cells import ORDER

if TYPE_CHECKING:
    from sevkvm.cli.pages_report import Looked
    from sevkvm.pages.changes import Change
    from sevkvm.pages.pagemap import PageKind


def _change_sums(changes: list[Change]) -> dict[tuple[PageKind, PageKind], Sum]:
    sums: dict[tuple[PageKind, PageKind], Sum] = {}
    for gpa, nbytes, before, after in changes:
        sums.setdefault((before, after), Sum()).add(gpa, nbytes)
    return {(was, now): sums[was, now] for was in ORDER for now in ORDER if (was, now) in sums}


def print_changes(changes: list[Change]) -> None:
    """A table on stdout: a line for each two kinds."""
    rows = [
        (
            was.value,
            now.value,
            str(found.nbytes // PAGE_NBYTES),
            size(found.nbytes),
            str(found.runs),
            found.words(),
        )
        for (was, now), found in _change_sums(changes).items()
    ]
    print_table(("BEFORE", "NOW", "PAGES", "SIZE", "RUNS", "FIRST"), rows)


def changes_json(changes: list[Change], looked: Looked) -> dict[str, Any]:
    """The object of ``--diff --json``."""
    return {
        "complete": looked.complete,
        "firmware_commands": looked.commands,
        "totals": [
            {
                "before": was.value,
                "after": now.value,
                "pages": found.nbytes // PAGE_NBYTES,
                "size": found.nbytes,
                "runs": found.runs,
            }
            for (was, now), found in _change_sums(changes).items()
        ],
        "changes": [
            {"gpa": hexadecimal(gpa), "size": nbytes, "before": was.value, "after": now.value}
            for gpa, nbytes, was, now in changes
        ],
    }


def change_list_lines(changes: list[Change]) -> Iterator[str]:
    """A change a line."""
    yield f"{'GPA':18}  {'END':18}  {'SIZE':>10}  {'BEFORE':9}  NOW"
    for gpa, nbytes, was, now in changes:
        yield f"0x{gpa:016x}  0x{gpa + nbytes:016x}  {size(nbytes):>10}  {was.value:9}  {now.value}"


def change_csv_lines(changes: list[Change]) -> Iterator[str]:
    """A row a change, after a header."""
    yield "gpa,size,before,after"
    for gpa, nbytes, was, now in changes:
        yield f"0x{gpa:x},{nbytes},{was.value},{now.value}"
