"""What page tables map, added up: for people, and as JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from sevkvm.abi.x86 import PAGE_NBYTES
from sevkvm.cli.render import hexadecimal, size
from sevkvm.native import EntryFlag

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sevkvm.cli.listing_rows import Rows
    from sevkvm.paging.form import PagingForm
    from sevkvm.paging.listing import ListReport, Run

MOST_RUNS = 1 << 22  # some seconds; a hostile guest can have 2**36 of them
_EXAMPLES = 5
_TABLE_NAMES = {5: "PML5", 4: "PML4", 3: "PDP", 2: "PD", 1: "PT"}
_WRITABLE, _USER, _NX = int(EntryFlag.WRITABLE), int(EntryFlag.USER), int(EntryFlag.NX)
_PRIVATE = int(EntryFlag.PRIVATE)


class Summary(NamedTuple):
    """``report`` is None with paging off."""

    form: PagingForm
    sums: Sums
    report: ListReport | None
    encrypted: bool


@dataclass
class Sums:
    """Bytes of guest-virtual memory by what may be done with them; memory that is mapped twice counts twice.

    ``pages``: how many, by size. ``wx``: writable and executable, in ``wx_ranges`` ranges, of which ``wx_first`` has
    the first as (gva, end). ``cut_at``: the gva at which adding up was given up, or None.
    """

    mapped: int = 0
    private: int = 0
    user: int = 0
    writable: int = 0
    executable: int = 0
    wx: int = 0
    wx_ranges: int = 0
    wx_first: list[tuple[int, int]] = field(default_factory=list)
    pages: dict[int, int] = field(default_factory=dict)
    cut_at: int | None = None


def add_up(runs: Iterable[Run], rows: Rows, most: int = MOST_RUNS) -> Sums:
    """Add up runs that tell everything apart, ``most`` of them."""
    sums = Sums()
    by_flags: dict[int, int] = {}
    wx_end = -1
    for count, (gva, nbytes, flags) in enumerate(runs):
        if count == most:
            sums.cut_at = gva
            break
        by_flags[flags] = by_flags.get(flags, 0) + nbytes
        if flags & (_WRITABLE | _NX) == _WRITABLE:
            sums.wx += nbytes
            if gva != wx_end:  # pages of other sizes may follow on
                sums.wx_ranges += 1
                if sums.wx_ranges <= _EXAMPLES:
                    sums.wx_first.append((gva, gva + nbytes))
            elif sums.wx_ranges <= _EXAMPLES:
                sums.wx_first[-1] = (sums.wx_first[-1][0], gva + nbytes)
            wx_end = gva + nbytes
    for flags, nbytes in by_flags.items():
        page = rows.page_nbytes(flags)
        sums.pages[page] = sums.pages.get(page, 0) + nbytes // page
        sums.mapped += nbytes
        sums.private += nbytes if flags & _PRIVATE else 0
        sums.user += nbytes if flags & _USER else 0
        sums.writable += nbytes if flags & _WRITABLE else 0
        sums.executable += 0 if flags & _NX else nbytes
    return sums


def facts(summary: Summary) -> Iterator[tuple[str, str]]:
    """Names and values; what goes on below a value is a fact without a name."""
    form, sums, _, encrypted = summary
    yield "paging", f"{form.mode.option_name}, top table at gpa 0x{form.root_gpa:x}"
    tables = _tables(summary)
    total = sum(count for _, count in tables)
    levels = ", ".join(f"{count} {_TABLE_NAMES[level]}" for level, count in tables)
    # one page may be a table of several levels
    nbytes = size(summary.report.tables * PAGE_NBYTES if summary.report else 0)
    yield "tables", f"{total} ({nbytes}){': ' * bool(levels)}{levels}"
    yield "pages", ", ".join(f"{count} of {size(page)}" for page, count in sorted(sums.pages.items())) or "0"
    yield "mapped", f"{size(sums.mapped)}: {_split(sums.user, 'user', sums.mapped, 'kernel')}"
    if encrypted:
        yield "C-bit", _split(sums.private, "private", sums.mapped, "shared")
    yield "rights", f"{size(sums.writable)} writable, {size(sums.executable)} executable"
    ranges = f" in {sums.wx_ranges} range{'s' * (sums.wx_ranges != 1)}" if sums.wx else ""
    yield "W+X", f"{size(sums.wx)}{ranges}"
    for gva, end in sums.wx_first:
        yield "", f"0x{gva:x}:0x{end:x} ({size(end - gva)})"
    if sums.wx_ranges > len(sums.wx_first):
        yield "", f"and {sums.wx_ranges - len(sums.wx_first)} more"


def _split(part: int, name: str, whole: int, other: str) -> str:
    return f"{size(part)} {name}, {size(whole - part)} {other}"


def _tables(summary: Summary) -> list[tuple[int, int]]:
    """(level, how many) from the top down."""
    return sorted(summary.report.tables_by_level.items(), reverse=True) if summary.report else []


def as_json(summary: Summary, *, live: bool) -> dict[str, Any]:
    """The object of ``--summary --json``."""
    form, sums, report, encrypted = summary
    lost = report.unreadable if report else ()
    limits = list(report.limits_hit) if report else []
    return {
        "paging_mode": form.mode.option_name,
        "root_gpa": hexadecimal(form.root_gpa) if form.levels else None,
        "tables": [
            {"level": level, "count": count, "size": count * PAGE_NBYTES} for level, count in _tables(summary)
        ],
        "pages": [{"page_size": page, "count": count} for page, count in sorted(sums.pages.items())],
        "mapped": sums.mapped,
        "user": sums.user,
        "kernel": sums.mapped - sums.user,
        "private": sums.private if encrypted else None,
        "shared": sums.mapped - sums.private if encrypted else None,
        "writable": sums.writable,
        "executable": sums.executable,
        "wx": {
            "size": sums.wx,
            "count": sums.wx_ranges,
            "first": [{"gva": hexadecimal(gva), "end": hexadecimal(end)} for gva, end in sums.wx_first],
        },
        "unreadable": [
            {"level": table.level, "gpa": hexadecimal(table.gpa), "gva": hexadecimal(table.gva)}
            for table in lost
        ],
        "unreadable_count": report.unreadable_count if report else 0,
        "reserved": report.reserved if report else 0,
        "limits_hit": limits,
        "complete": sums.cut_at is None and not (report and report.unreadable_count),
        "live": live,
    }
