"""``sevkvm search``: where something is in guest memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from sevkvm.cli.command import command as sevkvm_command
from sevkvm.cli.options import GuestSession, guest_options
from sevkvm.cli.page_map import page_map
from sevkvm.cli.progress import progress_bar
from sevkvm.cli.run import say, warn
from sevkvm.cli.search_report import json_line, text_lines
from sevkvm.cli.values import Range, number, parse_range
from sevkvm.errors import EXIT_FAILURE, EXIT_HOLES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from sevkvm.guest import Guest
    from sevkvm.paging.form import PagingForm
    from sevkvm.paging.listing import Listing
    from sevkvm.search.job import Search
    from sevkvm.search.memory import Stretch
    from sevkvm.search.pattern import Finder, Pattern

_MOST_CONTEXT = 4096
_HOLES_TOLD = 10
_KINDS = ("string", "hex", "regex", "utf16")


@sevkvm_command(
    "search",
    examples="""
    sevkvm search --pid 4242 'BEGIN RSA PRIVATE KEY'
    # bytes, any byte in the middle; with what is around them
    sevkvm search --pid 4242 --hex '48 8b ?? 05' -C 32 1M:+256M
    # a regular expression over bytes, in the kernel's virtual memory, in a dump
    sevkvm search --file guest.core --gva --regex 'Linux version [0-9.]+' 0xffffffff80000000:+1G
    sevkvm search --file guest.core --yara rules.yar
    # is it readable from the host? (it should not be)
    sevkvm search --pid 4242 --shared 'my secret'
    """,
)
@click.argument("words", metavar="PATTERN [RANGE]...", nargs=-1)
@click.option(
    "--string", "kind", flag_value="string", default=True, help="PATTERN is text in UTF-8 (default)."
)
@click.option("--hex", "kind", flag_value="hex", help="PATTERN is bytes in hexadecimal; ?? is any byte.")
@click.option("--regex", "kind", flag_value="regex", help="PATTERN is a regular expression over bytes.")
@click.option("--utf16", "kind", flag_value="utf16", help="PATTERN is text in little-endian UTF-16.")
@click.option(
    "--yara",
    "rules",
    metavar="FILE",
    type=click.Path(),
    help="Search by YARA rules; there is no PATTERN then.",
)
@click.option("-i", "--ignore-case", is_flag=True, help="Ignore the case of ASCII letters; not with --hex.")
@click.option("--gpa", "space", flag_value="gpa", default=True, help="Search physical memory (default).")
@click.option("--gva", "space", flag_value="gva", help="Search what the guest's page tables map.")
@click.option("--shared", is_flag=True, help="Do not decrypt: search what the host sees.")
@click.option(
    "-C",
    "--context",
    type=number(0, _MOST_CONTEXT),
    default=0,
    metavar="N",
    help="Show N bytes around a match.",
)
@click.option("--max-count", type=number(1, 1 << 62), metavar="N", help="Stop after N matches.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object a line (docs/json.md).")
@guest_options
def command(
    session: GuestSession,
    words: tuple[str, ...],
    kind: str,
    rules: str | None,
    ignore_case: bool,
    space: str,
    shared: bool,
    context: int,
    max_count: int | None,
    as_json: bool,
) -> None:
    """Search guest memory, decrypted, and print where PATTERN is, each match as it is found.

    Physical memory is the default: every page once, whatever process it belongs to. --gva follows the page tables of
    a vCPU, or of --cr3: memory that is scattered over physical pages is then searched as the guest sees it. RANGE is
    START:END or START:+SIZE of that address space; without one, all of it. A match may lie across pages; one of a
    regular expression is up to 4096 bytes long. The guest runs on meanwhile: to search one moment, dump it and search
    the file. Exit status: 0 found, 1 not found, 6 some memory could not be read.
    """
    wanted, ranges = _wanted(words, kind, rules, ignore_case)
    spans = [(each.start, each.end) for each in ranges]
    count = 0
    # nothing is drawn over matches that go to the same screen
    with progress_bar("searching", beside_stdout=True) as progress, session.open() as guest:
        form = guest.paging() if space == "gva" else None
        stretches, total, listing = _stretches(guest, form, spans, shared=shared)
        search = _search(guest, stretches, wanted, context)
        if progress is not None:
            search.advance = lambda done: progress(min(done, total), total)
        for match in search:
            count += 1
            gpa = search.gpa(match.address)
            if as_json:
                click.echo(json_line(match, space, gpa))
            else:
                click.echo("".join(f"{line}\n" for line in text_lines(match, space, gpa, context)), nl=False)
            if count == max_count:
                break
    complete = _tell(search, space, listing)
    if not complete:
        click.get_current_context().exit(EXIT_HOLES)
    if not count:
        click.get_current_context().exit(EXIT_FAILURE)


def _wanted(
    words: tuple[str, ...], kind: str, rules: str | None, ignore_case: bool
) -> tuple[Finder, list[Range]]:
    """What to find, and where; click.UsageError for words that are neither."""
    context = click.get_current_context()
    finder: Finder
    if rules is None:
        if not words:
            raise click.UsageError("Missing argument 'PATTERN'", context)
        finder, words = _pattern(kind, words[0], ignore_case), words[1:]
    elif kind != "string" or ignore_case:
        raise click.UsageError("--yara and an option for PATTERN exclude each other", context)
    else:
        from sevkvm.search.yara import compile_rules

        finder = compile_rules(rules)
    try:
        return finder, [parse_range(word) for word in words]
    except ValueError as error:
        raise click.UsageError(str(error), context) from None


def _pattern(kind: str, text: str, ignore_case: bool) -> Pattern:
    from sevkvm.search import pattern

    if kind == "hex":
        if ignore_case:
            raise click.UsageError("--ignore-case and --hex exclude each other", click.get_current_context())
        return pattern.hexadecimal(text)
    makers: dict[str, Callable[..., Pattern]] = {
        "string": pattern.string,
        "utf16": pattern.utf16,
        "regex": pattern.regular_expression,
    }
    return makers[kind](text, ignore_case=ignore_case)


def _stretches(
    guest: Guest, form: PagingForm | None, spans: Sequence[tuple[int, int]], *, shared: bool
) -> tuple[Iterable[Stretch], int, Listing | None]:
    """What to search, about how many bytes that are, and the listing that finds them as the search goes on."""
    from sevkvm.pages.classify import PageKind, uniform
    from sevkvm.paging.listing import Listing
    from sevkvm.search import memory

    if form is None or not form.levels:  # without paging a linear address is a physical one
        pages = uniform(guest.slots, PageKind.SHARED) if shared else page_map(guest, scan=True)
        found = memory.physical(guest.slots, pages, spans)
        return found, sum(stretch.nbytes for stretch in found), None
    listing = Listing(guest.memory, form, ranges=spans)
    mapped = memory.virtual(guest.slots, listing, spans)
    if shared:
        mapped = (stretch._replace(private=False) for stretch in mapped)
    most = sum(end - start for start, end in memory.merged(spans)) if spans else 1 << 64
    return mapped, min(most, 2 * guest.slots.nbytes), listing


def _search(guest: Guest, stretches: Iterable[Stretch], finder: Finder, context: int) -> Search:
    from sevkvm.search.job import Search

    return Search(guest.memory, stretches, finder, context)


def _tell(search: Search, space: str, listing: Listing | None) -> bool:
    """What could not be read, on stderr; True if there was nothing such."""
    for lost in search.lost[:_HOLES_TOLD]:
        tried = " (samples tried)" if lost.sampled else ""
        warn(f"{space} 0x{lost.address:x}:+0x{lost.nbytes:x} could not be read{tried}")
    if search.lost_count > _HOLES_TOLD:
        say(f"and {search.lost_count - _HOLES_TOLD} more holes, {search.lost_nbytes} bytes in all")
    tables = listing.report.unreadable_count if listing else 0
    if tables:
        warn(f"{tables} page tables could not be read: what they map was not searched")
    return not search.lost_count and not tables
