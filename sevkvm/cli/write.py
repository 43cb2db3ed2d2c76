"""``sevkvm write``: change guest memory, private pages through the secure processor."""

from __future__ import annotations

import click

from sevkvm.cli.command import command as sevkvm_command
from sevkvm.cli.options import GuestSession, guest_options, json_option
from sevkvm.cli.render import print_json
from sevkvm.cli.run import say
from sevkvm.cli.signals import Deferral
from sevkvm.cli.values import ADDRESS_END, parse_address
from sevkvm.cli.write_report import Outcome
from sevkvm.cli.write_target import Target, plan_write, require_expected
from sevkvm.cli.write_value import parse_bytes, parse_value, read_file

_KINDS = ("bytes", "word", "long", "quad", "string")


@sevkvm_command(
    "write",
    examples="""
    # what would be written where, and what is there now
    sevkvm write --pid 4242 --dry-run 0xffffffff82000000 --bytes 'de ad be ef'
    # a 32-bit number, if the old one is still there
    sevkvm write --pid 4242 0xffffffff82a01234 --long 1 --expect '00 00 00 00'
    sevkvm write --pid 4242 0xffff888000100000 --string 'hello'
    # physical memory; a file; the old bytes for undoing it
    sevkvm write --pid 4242 --gpa 0x1000000 --from page.bin --json >undo.json
    """,
)
@click.argument("words", metavar="ADDRESS [VALUE]...", nargs=-1, required=True)
@click.option("--bytes", "as_bytes", is_flag=True, help="VALUE is bytes in hexadecimal.")
@click.option("--word", "as_word", is_flag=True, help="Each VALUE is a number of 2 bytes, lowest byte first.")
@click.option("--long", "as_long", is_flag=True, help="Each VALUE is a number of 4 bytes.")
@click.option("--quad", "as_quad", is_flag=True, help="Each VALUE is a number of 8 bytes.")
@click.option(
    "--string", "as_string", is_flag=True, help="VALUE is text, written in UTF-8 without a final 0."
)
@click.option(
    "--from",
    "path",
    metavar="FILE",
    type=click.Path(),
    help="Write a file's bytes (- is stdin) up to 64 MiB.",
)
@click.option("--gva", "space", flag_value="gva", default=True, help="ADDRESS is virtual (default).")
@click.option("--gpa", "space", flag_value="gpa", help="ADDRESS is physical.")
@click.option("--private/--shared", "private", default=None, help="How the guest uses that physical memory.")
@click.option("--expect", metavar="BYTES", help="Write only if these bytes (hexadecimal) are there now.")
@click.option("-n", "--dry-run", is_flag=True, help="Check and show everything, and write nothing.")
@click.option(
    "--no-scan", is_flag=True, help="Do not read all page tables to tell private pages and page tables."
)
@guest_options
@json_option
def command(
    session: GuestSession,
    words: tuple[str, ...],
    path: str | None,
    space: str,
    private: bool | None,
    expect: str | None,
    dry_run: bool,
    no_scan: bool,
    as_json: bool,
    **kinds: bool,
) -> None:
    """Write to guest memory, all of it or, if any byte is not RAM that the guest itself could write, none.

    The vCPUs stand still meanwhile. Private pages are written through the secure processor, in whole blocks of 16
    bytes whose other bytes are kept, shared ones plainly; every page is read back before the next one is touched.
    Whether a page is private is told by the page tables: of a virtual address by its own entry, of a physical one by
    all of them, or by you. The old bytes are printed: written again, they undo it. ROM and MMIO are refused, page
    tables warned of. More than one block is not written at once: docs/write.md.
    """
    if session.file is not None:
        raise _usage("--file: a dump is not written to")
    target, expected = _target(words, path, kinds, space, private, expect, scan=not no_scan)
    outcome: Outcome | None = None
    deferral = Deferral()
    try:
        with session.open() as guest, guest.held():
            planned = plan_write(guest, target)
            if expected is not None:
                require_expected(target, planned.plan, expected)
            outcome = Outcome(target, planned, guest.sev.encrypted, dry_run)
            if not dry_run:
                deferral.start()  # a write is bounded by --timeout; half of one would be worse than a late Ctrl-C
                outcome.carry_out(guest)
    finally:
        try:
            deferral.end()
        finally:
            if outcome is not None:  # whatever happened: the old bytes are nowhere else
                _tell(outcome, as_json=as_json)
    if outcome.failed is not None:
        raise outcome.failed


def _target(
    words: tuple[str, ...],
    path: str | None,
    kinds: dict[str, bool],
    space: str,
    private: bool | None,
    expect: str | None,
    *,
    scan: bool,
) -> tuple[Target, bytes | None]:
    """What to write where, and what must be there; click.UsageError for what makes no sense."""
    chosen = [kind for kind in _KINDS if kinds[f"as_{kind}"]]
    if len(chosen) + (path is not None) != 1:
        raise _usage("give one of --bytes, --word, --long, --quad, --string and --from")
    if space == "gva" and private is not None:
        raise _usage("--private and --shared need --gpa: of a virtual address the page tables tell")
    if path is not None and len(words) > 1:
        raise _usage("--from and a VALUE exclude each other")
    content = None if path is None else read_file(path)
    try:
        address = parse_address(words[0])
        data = parse_value(chosen[0], words[1:]) if content is None else content
        expected = None if expect is None else parse_bytes([expect])
    except ValueError as error:
        raise _usage(str(error)) from None
    if not data:
        raise _usage("there is nothing to write")
    if address + len(data) > ADDRESS_END:
        raise _usage(f"{len(data)} bytes at 0x{address:x} end above 2**64")
    if expected is not None and len(expected) != len(data):
        raise _usage(f"--expect has {len(expected)} bytes, {len(data)} are to be written")
    return Target(space, address, data, private, scan), expected


def _usage(message: str) -> click.UsageError:
    return click.UsageError(message, click.get_current_context())


def _tell(outcome: Outcome, *, as_json: bool) -> None:
    if as_json:
        print_json(outcome.json())
    else:
        click.echo("".join(f"{line}\n" for line in outcome.text()), nl=False)
    if outcome.dry_run:
        say("nothing was written (--dry-run)")
    elif outcome.written == outcome.planned.plan.nbytes:
        say(f"{outcome.written} bytes written and read back")
