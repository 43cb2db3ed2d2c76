"""``info tlb`` and ``info mem``: what the page tables of the current vCPU map."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sevkvm.monitor.command import Command
from sevkvm.paging.listing import Listing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sevkvm.monitor.arguments import Arguments
    from sevkvm.monitor.monitor import Monitor


def info_tlb(monitor: Monitor, given: Arguments) -> Iterator[str]:
    """Every page."""
    return _listed(monitor, leaves=True)


def info_mem(monitor: Monitor, given: Arguments) -> Iterator[str]:
    """Runs of pages of equal rights."""
    return _listed(monitor, leaves=False)


def _listed(monitor: Monitor, *, leaves: bool) -> Iterator[str]:
    guest = monitor.guest
    form = guest.paging(monitor.vcpu)
    if not form.levels:
        yield "PG disabled\n"
        return
    listing = Listing(guest.memory, form)
    for piece in listing.leaves_text() if leaves else listing.runs_text():
        yield piece.decode("ascii")
    if listing.report.unreadable_count:
        monitor.hole()
        yield f"{listing.report.unreadable_count} page tables could not be read\n"


COMMANDS: Final = (
    Command("mem", "", "", "show the active virtual memory mappings", info_mem, still=True),
    Command("tlb", "", "", "show virtual to physical memory mappings", info_tlb, still=True),
)
