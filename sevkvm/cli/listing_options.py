"""The options of ``sevkvm tlb`` and ``sevkvm mem``, and what was asked for with them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import click

from sevkvm.cli.options import GuestSession, guest_options, json_option
from sevkvm.cli.values import RANGE, SECONDS, Range, number

# Ten thousand tables of an encrypted guest take about that long; the watchdogs of guests and clusters wait for more.
HOLD_SECONDS = 1.0
_STYLES = ("columns", "csv", "summary")

Answer = Callable[[GuestSession, "Request"], None]


class Request(NamedTuple):
    """What was asked for. ``style`` is ``text`` (QEMU's), ``columns``, ``json``, ``csv`` or ``summary``.

    ``leaves``: pages, not runs. ``limit``: lines, or None. ``hold``: seconds for which the guest may stand still;
    None lets it run.
    """

    leaves: bool
    ranges: tuple[Range, ...]
    style: str
    as_json: bool
    limit: int | None
    hold: float | None


def listing_options(*, leaves: bool) -> Callable[[Answer], Callable[..., None]]:
    """Give a command these options and the guest options; it gets a session and a Request."""
    record = "page" if leaves else "run"

    def decorate(function: Answer) -> Callable[..., None]:
        @functools.wraps(function)
        def command(session: GuestSession, **settings: Any) -> None:
            function(session, _request(leaves, settings))

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
