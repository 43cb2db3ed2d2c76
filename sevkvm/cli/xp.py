"""``sevkvm xp``: guest-physical memory, as QEMU's monitor prints it."""

from __future__ import annotations

import functools

import click

from sevkvm.cli.command import command as sevkvm_command
from sevkvm.cli.examining import answer, parse_question
from sevkvm.cli.options import GuestSession, guest_options, json_option, mmio_option


@sevkvm_command(
    "xp",
    examples="""
    sevkvm xp --pid 4242 /16xg 0x1000000
    # the same memory as the VMM sees it: ciphertext
    sevkvm xp --pid 4242 --shared /16xg 0x1000000
    # two registers of a device, read by the VMM
    sevkvm xp --pid 4242 --mmio /2xw 0xfed00000
    """,
)
@click.argument("words", metavar="[/FMT] GPA", nargs=-1, required=True)
@click.option(
    "--shared",
    is_flag=True,
    help="Do not decrypt: right for pages that the guest shares; private ones show as ciphertext.",
)
@mmio_option
@guest_options
@json_option
def command(session: GuestSession, words: tuple[str, ...], shared: bool, as_json: bool) -> None:
    """Print guest-physical memory, byte for byte as QEMU's monitor command xp prints it.

    FMT is a count, a letter of x d u o c (hexadecimal, signed, unsigned, octal, characters) and a size of b h w g
    (1, 2, 4, 8 bytes); /1xw if left out. An encrypted guest's memory is decrypted, unless --shared. The first
    address that cannot be read ends the answer, with exit status 6. So does one that is no RAM, unless --mmio: each
    item is then one access to the device, of its size.
    """
    answer(
        session,
        parse_question("gpa", words),
        lambda guest: functools.partial(guest.memory.read, private=not shared),
        as_json=as_json,
        need_debug=not shared,  # whoever may read the VMM's memory may see ciphertext
    )
