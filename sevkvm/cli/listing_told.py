"""What else there is to say of a list, on stderr when it has ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sevkvm.cli.run import say, warn

if TYPE_CHECKING:
    from sevkvm.cli.listing_standing import Standing
    from sevkvm.paging.listing import ListReport

_EXAMPLES = 5
_LIMITS = {
    "summaries": "what is said to be distinct may not be",
    "unreadable": "not every lost table is named",
}


def tell(report: ListReport, standing: Standing) -> bool:
    """Tell it; False if the list has holes."""
    if standing.reason is not None:
        where = "at the very end" if standing.since is None else f"from gva 0x{standing.since:x} on"
        warn(f"{where} the tables were read while the guest ran: {standing.reason}")
    lost = report.unreadable_count
    if lost:
        tables = "1 page table" if lost == 1 else f"{lost} page tables"
        warn(f"{tables} could not be read; what would be mapped there is not listed")
        for table in report.unreadable[:_EXAMPLES]:
            say(f"  level {table.level}, gpa 0x{table.gpa:x}, for gva 0x{table.gva:x}")
        if lost > _EXAMPLES:
            say(f"  and {lost - _EXAMPLES} more")
    if report.reserved:
        entries = "1 entry has" if report.reserved == 1 else f"{report.reserved} entries have"
        say(f"note: {entries} reserved bits set: the processor faults there, and nothing is mapped")
    for limit in report.limits_hit:
        say(f"note: the limit '{limit}' was reached: {_LIMITS.get(limit, 'not everything was listed')}")
    return not lost
