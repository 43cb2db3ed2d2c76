"""``sevkvm verify``: prove from the host that a guest is encrypted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from sevkvm.cli.command import command as sevkvm_command
from sevkvm.cli.options import GuestSession, guest_options, json_option
from sevkvm.cli.values import number, parse_address, parse_range
from sevkvm.errors import EXIT_FAILURE

if TYPE_CHECKING:
    from sevkvm.verify.job import Wanted
    from sevkvm.verify.require import Requirement

_MOST_SAMPLES = 4096
_MOST_CANARY = 64 << 10
_FLAGS = ("nodebug", "es")
_RANGES = ("private", "shared")


@sevkvm_command(
    "verify",
    examples="""
    sevkvm verify --pid 4242
    # a secret that was planted in the guest: it is there, and the host cannot see it
    sevkvm verify --pid 4242 --canary 'correct horse battery staple'
    sevkvm verify --pid 4242 --canary @canary.bin --at gva:0x7ffff7dd5000
    # a guest in which nothing was planted: put it there for a moment
    sevkvm verify --pid 4242 --canary 'correct horse battery staple' --at gpa:0x5f00000 --place
    # a gate for production: encrypted registers, and nobody can debug it
    sevkvm verify --pid 4242 --require es --require nodebug --json > report.json
    # memory that must be private, and a buffer that must not
    sevkvm verify --pid 4242 --require private=1M:+64M --require shared=0x5f00000:+64K
    """,
)
@click.option(
    "--canary",
    metavar="TEXT",
    help="Bytes that are in the guest: TEXT, hex:DIGITS, or @FILE; 8 to 65536 of them.",
)
@click.option(
    "--at", metavar="[gpa:|gva:]ADDR", help="Where the canary is; else private memory is searched for it."
)
@click.option(
    "--place",
    is_flag=True,
    help="Write the canary --at its address first, and put back what was there. The guest stands still meanwhile.",
)
@click.option(
    "--require",
    "requirements",
    multiple=True,
    metavar="WHAT",
    help="private=GPA:END, shared=GPA:END, nodebug or es; repeatable.",
)
@click.option(
    "--samples",
    type=number(1, _MOST_SAMPLES),
    default=16,
    show_default=True,
    metavar="N",
    help="Most pages to look at for one check.",
)
@click.option(
    "--untouched-ok", is_flag=True, help="In a range that must be private, accept pages never written."
)
@click.option("--strict", is_flag=True, help="Fail for checks that could not be made, too.")
@guest_options
@json_option
def command(
    session: GuestSession,
    canary: str | None,
    at: str | None,
    place: bool,
    requirements: tuple[str, ...],
    samples: int,
    untouched_ok: bool,
    strict: bool,
    as_json: bool,
) -> None:
    """Prove that a guest's memory is encrypted, from the host.

    Some private pages, page tables among them, are read twice: as the host sees them, which must be noise, and through
    the debug path, which must return the plaintext. Equal plaintext at two addresses must be different ciphertext, and
    shared pages must be plain to the host. A canary must be found decrypted, in private pages, and nowhere in what the
    host sees. With --require nodebug the debug path must be refused instead; then only the host's view is looked at.

    The exit status is 0 only if nothing failed and everything required was shown; what could not be looked at is
    [ SKIP ], and no failure unless it is required, or with --strict. 1: failed.
    """
    if place and at is None:
        raise click.UsageError("--place needs --at: where to", click.get_current_context())
    wanted = _wanted(
        canary, at, place, requirements, samples, untouched_ok, session.arguments["search_limit"]
    )
    if session.file is not None:
        raise click.UsageError(
            "a dump cannot be verified: it does not tell how the memory was kept", click.get_current_context()
        )
    from sevkvm.cli.verify_report import print_report, report_json
    from sevkvm.verify.job import verify

    with session.open(need_debug=False) as guest:
        report = verify(guest, wanted)
    passed = report.passed(strict=strict)
    if as_json:
        from sevkvm.cli.render import print_json

        print_json(report_json(guest, report, passed, strict=strict))
    else:
        print_report(guest, report, passed, strict=strict)
    if not passed:
        click.get_current_context().exit(EXIT_FAILURE)


def _wanted(
    canary: str | None,
    at: str | None,
    place: bool,
    requirements: tuple[str, ...],
    samples: int,
    untouched_ok: bool,
    limit: int,
) -> Wanted:
    from sevkvm.verify.canary import check_canary
    from sevkvm.verify.job import Wanted

    if at is not None and canary is None:
        raise click.UsageError(
            "--at says where the canary is: give one with --canary", click.get_current_context()
        )
    flags = {text for text in requirements if text in _FLAGS}
    if "nodebug" in flags and at is not None:
        raise click.UsageError(
            "--at and --require nodebug exclude each other: nothing can be decrypted there",
            click.get_current_context(),
        )
    data = None if canary is None else _canary(canary)
    if data is not None:
        check_canary(data)
    return Wanted(
        canary=data,
        at=None if at is None else _address(at),
        place=place,
        samples=samples,
        ranges=tuple(_range(text) for text in requirements if text not in _FLAGS),
        nodebug="nodebug" in flags,
        es="es" in flags,
        limit=limit,
        untouched_ok=untouched_ok,
    )


def _canary(text: str) -> bytes:
    if text.startswith("@"):
        with open(text[1:], "rb") as file:
            return file.read(_MOST_CANARY + 1)
    if text.startswith("hex:"):
        try:
            return bytes.fromhex(text[4:])
        except ValueError:
            raise click.UsageError(
                "--canary hex: is followed by pairs of hexadecimal digits", click.get_current_context()
            ) from None
    return text.encode()


def _address(text: str) -> tuple[str | None, int]:
    space, colon, rest = text.partition(":")
    try:
        if colon and space in ("gpa", "gva"):
            return space, parse_address(rest)
        return None, parse_address(text)
    except ValueError as error:
        raise click.UsageError(f"--at: {error}", click.get_current_context()) from None


def _range(text: str) -> Requirement:
    from sevkvm.verify.require import Requirement

    kind, equals, span = text.partition("=")
    if not equals or kind not in _RANGES:
        raise click.UsageError(
            f"--require: '{text}' is not private=GPA:END, shared=GPA:END, nodebug or es",
            click.get_current_context(),
        )
    try:
        return Requirement(kind, *parse_range(span))
    except ValueError as error:
        raise click.UsageError(f"--require: {error}", click.get_current_context()) from None
