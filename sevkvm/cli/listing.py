"""What ``sevkvm tlb`` and ``sevkvm mem`` do: the way from page tables to stdout."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from sevkvm.cli.run import say
from sevkvm.errors import EXIT_HOLES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sevkvm.cli.listing_cut import Cut
    from sevkvm.cli.listing_options import Request
    from sevkvm.cli.listing_pieces import Piece
    from sevkvm.cli.listing_standing import Standing
    from sevkvm.cli.options import GuestSession
    from sevkvm.guest import Guest
    from sevkvm.paging.form import PagingForm
    from sevkvm.paging.listing import Listing


def answer(session: GuestSession, request: Request) -> None:
    """List, or add up; exit with 6 when the answer has holes."""
    if request.style == "summary":
        _summarize(session, request)
    else:
        _list(session, request)


@contextmanager
def _opened(
    session: GuestSession, request: Request
) -> Iterator[tuple[Guest, PagingForm, Standing, Listing | None]]:
    """The guest, standing still for a while, and a list of what its tables map; None if it uses none."""
    from sevkvm.cli.listing_standing import Standing
    from sevkvm.paging.listing import Listing

    with session.open() as guest, Standing(guest, request.hold) as standing:
        form = guest.paging()
        listing = Listing(standing, form, ranges=request.ranges) if form.levels else None
        yield guest, form, standing, listing


def _list(session: GuestSession, request: Request) -> None:
    from sevkvm.cli.listing_cut import Cut
    from sevkvm.cli.listing_outlet import Outlet, stdout_write
    from sevkvm.cli.listing_standing import SLOW_READER

    cut = Cut(request.limit)
    # the guest is left before the queue is waited for
    with Outlet(stdout_write()) as outlet, _opened(session, request) as (guest, form, standing, listing):
        for gva, data in _pieces(guest, form, listing, request, cut):
            standing.mark(gva)
            standing.check()
            if not outlet.has_room(len(data)):
                standing.let_go(SLOW_READER)
            outlet.put(data)
    if cut.more:
        say(f"stopped after {request.limit} lines; there is more")
    _finish(listing, standing, text=request.style == "text")


def _pieces(
    guest: Guest, form: PagingForm, listing: Listing | None, request: Request, cut: Cut
) -> Iterable[Piece]:
    from sevkvm.cli.listing_pieces import of_records, of_text

    if request.style == "text":
        if listing is None:
            return [(None, b"PG disabled\n")]
        return of_text(cut.text(listing.leaves_text() if request.leaves else listing.runs_text()))

    from sevkvm.cli.listing_rows import TELL_APART, Rows

    rows = Rows(form, encrypted=guest.sev.encrypted)
    layouts = {
        "columns": (rows.run_columns, rows.leaf_columns),
        "json": (rows.run_json, rows.leaf_json),
        "csv": (rows.run_csv, rows.leaf_csv),
    }
    layout = layouts[request.style][request.leaves]()
    if listing is None:
        return of_records((), layout)
    if request.leaves:
        return of_records(cut.records(listing.leaves()), layout)
    return of_records(cut.records(listing.runs(TELL_APART)), layout)


def _summarize(session: GuestSession, request: Request) -> None:
    from sevkvm.cli import listing_summary
    from sevkvm.cli.listing_rows import TELL_APART, Rows
    from sevkvm.cli.render import print_facts, print_json

    with _opened(session, request) as (guest, form, standing, listing):
        runs = listing.runs(TELL_APART) if listing else ()
        sums = listing_summary.add_up(runs, Rows(form, encrypted=guest.sev.encrypted))
    summary = listing_summary.Summary(form, sums, listing.report if listing else None, guest.sev.encrypted)
    if request.as_json:
        print_json(listing_summary.as_json(summary, live=standing.reason is not None or request.hold is None))
    elif listing:
        print_facts(listing_summary.facts(summary))
    if sums.cut_at is not None:
        say(f"note: added up no further than gva 0x{sums.cut_at:x}, after {listing_summary.MOST_RUNS} runs")
    _finish(listing, standing, text=False, whole=sums.cut_at is None)


def _finish(listing: Listing | None, standing: Standing, *, text: bool, whole: bool = True) -> None:
    """Tell what else there is to say; exit with 6 if the answer has holes."""
    from sevkvm.cli.listing_told import tell

    if listing is None:
        if not text:
            say("note: paging is off: guest-virtual addresses are guest-physical ones")
        return
    if not tell(listing.report, standing) or not whole:
        click.get_current_context().exit(EXIT_HOLES)
