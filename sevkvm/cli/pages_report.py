"""What came of looking at a guest's pages: tables for people, JSON and CSV for programs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from sevkvm.abi.x86 import PAGE_NBYTES
from sevkvm.cli.render import hexadecimal, print_table, size
from sevkvm.cli.run import say, warn
from sevkvm.pages.cells import ORDER
from sevkvm.pages.pagemap import PageKind

if TYPE_CHECKING:
    from sevkvm.pages.pagemap import PageMap
    from sevkvm.pages.survey import Survey

_FIRST = 3


class Looked(NamedTuple):
    """A survey and what it cost; ``sev`` is the kind of protection as ``status`` names it."""

    survey: Survey
    name: str
    sev: str
    cbit_pos: int | None
    live: bool
    commands: int

    @property
    def pages(self) -> PageMap:
        """Every page."""
        return self.survey.pages

    @property
    def complete(self) -> bool:
        """No page table was missed."""
        scan = self.pages.scan
        return scan is None or not (scan.unreadable_count or scan.limits_hit)


class Sum:
    """Of one kind: how much, in how many runs, and the first of them."""

    def __init__(self) -> None:
        self.nbytes = self.runs = 0
        self.first: list[tuple[int, int]] = []

    def add(self, gpa: int, nbytes: int) -> None:
        """One more run."""
        self.nbytes += nbytes
        self.runs += 1
        if len(self.first) < _FIRST:
            self.first.append((gpa, nbytes))

    def words(self) -> str:
        """The first runs, as ranges that options take."""
        named = ", ".join(f"0x{gpa:x}:+0x{nbytes:x}" for gpa, nbytes in self.first)
        more = self.runs - len(self.first)
        return f"{named} and {more} more" if more else named


def _sums(pages: PageMap) -> dict[PageKind, Sum]:
    sums: dict[PageKind, Sum] = {}
    for gpa, nbytes, kind in pages.kinds():
        sums.setdefault(kind, Sum()).add(gpa, nbytes)
    return {kind: sums[kind] for kind in ORDER if kind in sums}


def print_summary(looked: Looked) -> None:
    """A table on stdout: a line a kind."""
    rows = [
        (kind.value, str(found.nbytes // PAGE_NBYTES), size(found.nbytes), str(found.runs), found.words())
        for kind, found in _sums(looked.pages).items()
    ]
    print_table(("KIND", "PAGES", "SIZE", "RUNS", "FIRST"), rows)


def tell(looked: Looked) -> None:
    """What to know of the answer, on stderr."""
    survey, pages = looked.survey, looked.pages
    if pages.conflicts:
        nbytes = sum(nbytes for _, nbytes in pages.conflicts)
        warn(
            f"{size(nbytes)} are mapped both as private and as shared, first at gpa 0x{pages.conflicts[0][0]:x}"
        )
    if survey.why_no_tables is not None:
        warn(f"{survey.why_no_tables}; without page tables nothing tells private from shared")
    elif looked.sev != "none" and not pages.direct_maps:
        warn("no direct map of the kernel was found: each mapping of a page counts as much as any other")
    if not looked.complete:
        warn("not all page tables could be read: pages that only they map are told as unmapped")
    tables = len(pages.scan.table_gpas) if pages.scan else 0
    say(f"{tables} table pages read, {looked.commands} firmware commands")


def json_text(looked: Looked) -> Iterator[str]:
    """The object of ``--json``, piece by piece: a hostile guest has millions of runs."""
    import json

    conflicts = (
        {"gpa": hexadecimal(run.gpa), "size": run.nbytes, "kind": run.kind.value, "private": run.private}
        for gpa, nbytes in looked.pages.conflicts
        for run in looked.pages.runs(gpa, gpa + nbytes)
    )
    runs = (
        {"gpa": hexadecimal(gpa), "size": nbytes, "kind": kind.value}
        for gpa, nbytes, kind in looked.pages.kinds()
    )
    yield json.dumps(_head(looked), indent=2).removesuffix("\n}")
    for name, objects in (("conflicts", conflicts), ("runs", runs)):
        yield f',\n  "{name}": ['
        glue = "\n    "
        for each in objects:
            yield glue + json.dumps(each)
            glue = ",\n    "
        yield "\n  ]"
    yield "\n}\n"


def _head(looked: Looked) -> dict[str, Any]:
    """All but the two lists that can be long."""
    survey, pages = looked.survey, looked.pages
    scan = pages.scan
    return {
        "sev": looked.sev,
        "cbit_pos": looked.cbit_pos,
        "live": looked.live,
        "complete": looked.complete,
        "untouched_known": survey.looked,
        "no_tables": survey.why_no_tables,
        "roots": [hexadecimal(form.root_gpa) for form in pages.forms],
        "direct_maps": [{"gva": hexadecimal(each.gva), "size": each.nbytes} for each in pages.direct_maps],
        "tables": len(scan.table_gpas) if scan else 0,
        "unreadable_count": scan.unreadable_count if scan else 0,
        "limits_hit": list(scan.limits_hit) if scan else [],
        "firmware_commands": looked.commands,
        "totals": [
            {
                "kind": kind.value,
                "pages": found.nbytes // PAGE_NBYTES,
                "size": found.nbytes,
                "runs": found.runs,
            }
            for kind, found in _sums(pages).items()
        ],
    }


def list_lines(pages: PageMap) -> Iterator[str]:
    """A run a line; END is not part of it."""
    yield f"{'GPA':18}  {'END':18}  {'SIZE':>10}  KIND"
    for gpa, nbytes, kind in pages.kinds():
        yield f"0x{gpa:016x}  0x{gpa + nbytes:016x}  {size(nbytes):>10}  {kind.value}"


def csv_lines(pages: PageMap) -> Iterator[str]:
    """A row a run, after a header."""
    yield "gpa,size,kind"
    for gpa, nbytes, kind in pages.kinds():
        yield f"0x{gpa:x},{nbytes},{kind.value}"
