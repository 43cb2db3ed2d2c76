"""``sevkvm pages``: which pages of a guest are private, shared, never touched."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import click

from sevkvm.cli.command import command as sevkvm_command
from sevkvm.cli.options import GuestSession, guest_options, json_option
from sevkvm.cli.progress import progress_bar, table_teller
from sevkvm.cli.run import say
from sevkvm.errors import EXIT_HOLES

if TYPE_CHECKING:
    from sevkvm.cli.pages_report import Looked
    from sevkvm.dump.output import Target
    from sevkvm.pages.pagemap import PageKind


@sevkvm_command(
    "pages",
    examples="""
    # how much of it is private, shared, page tables, never touched?
    sevkvm pages --pid 4242
    # every run of pages of one kind
    sevkvm pages --pid 4242 --list
    # shared memory alone
    sevkvm pages --pid 4242 --csv | grep shared
    # a picture: in the terminal, or a file for any browser (hover, zoom)
    sevkvm pages --pid 4242 --plot
    sevkvm pages --pid 4242 --html pages.html
    # what changes while a driver is loaded?
    sevkvm pages --pid 4242 --json > before.json
    sevkvm pages --pid 4242 --diff before.json
    # of a dump
    sevkvm pages --file guest.core --list
    """,
)
@click.option("--list", "shape", flag_value="list", help="Print every run of pages of one kind.")
@click.option("--csv", "shape", flag_value="csv", help="Print the runs as comma-separated values.")
@click.option("--plot", "shape", flag_value="plot", help="Draw a map: colours on a terminal, else letters.")
@json_option
@click.option(
    "--diff",
    "earlier",
    metavar="FILE",
    type=click.Path(),
    help="Tell only what changed since an earlier --json.",
)
@click.option("--svg", metavar="FILE", help="Write a picture of the map; - is stdout.")
@click.option("--html", metavar="FILE", help="Write a page for a browser: hover, zoom; one file, no network.")
@click.option(
    "--layout",
    type=click.Choice(["hilbert", "linear"]),
    help="Neighbours near each other along a curve, or row by row. Default: linear for --plot, else hilbert.",
)
@click.option("--force", is_flag=True, help="Overwrite FILE.")
@click.option("--live", is_flag=True, help="Let the guest run while its page tables are read.")
@click.option(
    "--tables-only",
    is_flag=True,
    help="Do not read the host's view of all memory in search of untouched pages.",
)
@guest_options
def command(
    session: GuestSession,
    shape: str | None,
    as_json: bool,
    earlier: str | None,
    svg: str | None,
    html: str | None,
    layout: str | None,
    force: bool,
    live: bool,
    tables_only: bool,
) -> None:
    """Tell of every guest-physical page what it is; by default, how many there are of each kind.

    \b
    private    mapped with the C-bit by the guest's page tables
    shared     mapped without it: the host can read it
    conflict   mapped both ways, which is worth a look
    table      a page table; the processor takes it as private
    rom        in a read-only memory slot
    untouched  zeros as the host sees it: not written as private memory
    unmapped   RAM that no page table at hand maps
    hole       no memory
    plain      mapped RAM of a guest that is not encrypted

    The page tables are those of every vCPU, or of --cr3; of a Linux guest whose registers are encrypted (SEV-ES) the
    kernel's own are found. The vCPUs stand still while tables are read, unless --live. Then memory is read as the host
    sees it, which costs no firmware command; --tables-only saves the time. Exit status 6: a table could not be read.
    """
    if as_json and shape:
        raise click.UsageError(f"--json and --{shape} exclude each other", click.get_current_context())
    if earlier and shape == "plot":
        raise click.UsageError("--diff and --plot exclude each other", click.get_current_context())
    if "-" in (svg, html) and (shape or as_json or earlier or svg == html):
        raise click.UsageError("stdout can take one answer only", click.get_current_context())
    targets = {name: _target(path, force) for name, path in (("svg", svg), ("html", html)) if path}
    before = None if earlier is None else _read_earlier(earlier)
    from sevkvm.cli.pages_output import draw, show, show_changes
    from sevkvm.cli.pages_report import tell

    looked = _look(session, live=live, look=not tables_only)
    for name, target in targets.items():
        draw(looked, name, target, layout or "hilbert")
    if before is not None:
        from sevkvm.pages.changes import changes

        show_changes(looked, list(changes(before, looked.pages.kinds())), shape, as_json=as_json)
    elif "-" not in (svg, html):
        show(looked, shape, layout or "linear", as_json=as_json)
    tell(looked)
    if not looked.complete:
        click.get_current_context().exit(EXIT_HOLES)


def _target(name: str, force: bool) -> Target:
    from sevkvm.dump.output import prepare

    return prepare(name, force=force, check_space=False)


def _read_earlier(name: str) -> list[tuple[int, int, PageKind]]:
    from sevkvm.cli.pages_earlier import read_earlier

    return read_earlier(name)


def _look(session: GuestSession, *, live: bool, look: bool) -> Looked:
    """Attach, and leave again before anything is printed."""
    from sevkvm.cli.pages_report import Looked
    from sevkvm.pages.survey import by_tables, survey

    with progress_bar("looking at pages") as progress, session.open() as guest:
        with nullcontext() if live else guest.held():
            tables = by_tables(guest, table_teller(say))
        told = survey(guest, tables, look=look, progress=progress or (lambda done, total: None))
        commands = guest.stats()["firmware_commands"]
        name = guest.name or f"pid {guest.pid}"
        return Looked(told, name, guest.sev.kind.value, guest.sev.cbit_pos, live, commands)
