"""What ``sevkvm tlb`` and ``sevkvm mem`` have in common: their options, and the way from page tables to stdout."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from sevkvm.cli.options import GuestSession, guest_options, json_option
from sevkvm.cli.run import say
from sevkvm.cli.values import RANGE, SECONDS, Range, number
from sevkvm.errors import EXIT_HOLES

if TYPE_CHECKING:
    from sevkvm.cli.listing_cut import Cut
    from sevkvm.cli.listing_pieces import Piece
    from sevkvm.cli.listing_standing import Standing
    from sevkvm.guest import Guest
    from sevkvm.paging.form import PagingForm
    from sevkvm.paging.listing import Listing

# Ten thousand tables of an encrypted guest take about that long; the watchdogs of guests and clusters wait for more.
HOLD_SECONDS = 1.0
_STYLES = ("columns", "csv", "summary")


class Request(NamedTuple):
    """What was asked for. ``style`` is ``text`` (QEMU's), ``columns``, ``json``, ``csv`` or ``summary``.

    ``hold``: seconds for which the guest may stand still; None lets it run. ``limit``: lines, or None.
    """

    leaves: bool
    ranges: tuple[Range, ...]
    style: str
    as_json: bool
    limit: int | None
    hold: float | None


def listing_options(*, leaves: bool) -> Callable[[Callable[[], None]], Callable[..., None]]:
    """Make a command's function, whose docstring is its help, list leaves (else runs)."""
    record = "page" if leaves else "run"

    def decorate(function: Callable[[], None]) -> Callable[..., None]:
        @functools.wraps(function)
        def command(session: GuestSession, **settings: Any) -> None:
            request = _request(leaves, settings)
            if request.style == "summary":
                _summarize(session, request)
            else:
                _list(session, request)

        options = (
            click.argument("ranges", metavar="[RANGE]...", nargs=-1, type=RANGE),
            click.option("--columns", is_flag=True, help="A table that tells the C-bit and all rights, too."),
            click.option("--csv", is_flag=True, help="The same for programs that read CSV, with a header."),
            click.option("--summary", is_flag=True, help="Add it all up instead; also with --json."),
            click.option(
                "--limit", type=number(1, 1 << 40), metavar="N", help=f"Stop after N lines, one a {record}."
            ),
            click.option(
                "--hold",
                type=SECONDS,
                default=HOLD_SECONDS,
                show_default=True,
                metavar="SECONDS",
                help="Let the guest run on after so long, even if not all has been read.",
            ),
            click.option("--live", is_flag=True, help="Let the guest run meanwhile: not one moment in time."),
            guest_options,
            json_option,
        )
        decorated: Callable[..., None] = command
        for option in reversed(options):
            decorated = option(decorated)
        return decorated

    return decorate


def _request(leaves: bool, settings: dict[str, Any]) -> Request:
    context = click.get_current_context()
    styles = [style for style in _STYLES if settings[style]]
    as_json = settings["as_json"]
    if len(styles) > 1 or (as_json and styles not in ([], ["summary"])):
        raise click.UsageError("of --columns, --json, --csv and --summary give one", context)
    style = styles[0] if styles else "json" if as_json else "text"
    if style == "summary" and settings["limit"] is not None:
        raise click.UsageError("--limit counts lines, and a summary has none", context)
    if settings["live"] and context.get_parameter_source("hold") is click.core.ParameterSource.COMMANDLINE:
        raise click.UsageError("--live and --hold exclude each other", context)
    hold = None if settings["live"] else settings["hold"]
    return Request(leaves, settings["ranges"], style, as_json, settings["limit"], hold)


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
