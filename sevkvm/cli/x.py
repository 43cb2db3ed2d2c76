"""``sevkvm x``: guest-virtual memory, as QEMU's monitor prints it."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import click

from sevkvm.cli.command import command as sevkvm_command
from sevkvm.cli.examining import answer, parse_question
from sevkvm.cli.options import GuestSession, guest_options, json_option, mmio_option

if TYPE_CHECKING:
    from collections.abc import Callable

    from sevkvm.guest import Guest


@sevkvm_command(
    "x",
    examples="""
    # 16 quadwords in hexadecimal
    sevkvm x --pid 4242 /16xg 0xffffffff81000000
    # characters, as many as fit
    sevkvm x --pid 4242 /64c 0xffffffff82000000
    # the second vCPU's view of a user address
    sevkvm x --pid 4242 --vcpu 1 /8xw 0x7ffff7dd5000
    """,
)
@click.argument("words", metavar="[/FMT] GVA", nargs=-1, required=True)
@mmio_option
@guest_options
@json_option
def command(session: GuestSession, words: tuple[str, ...], as_json: bool) -> None:
    """Print guest-virtual memory, byte for byte as QEMU's monitor command x prints it.

    FMT is a count, a letter of x d u o c (hexadecimal, signed, unsigned, octal, characters) and a size of b h w g
    (1, 2, 4, 8 bytes); /1xw if left out. The first address that cannot be read ends the answer, with exit status 6.
    So does one that is no RAM, unless --mmio: each item is then one access to the device, of its size.
    """
    answer(session, parse_question("gva", words), _reading, as_json=as_json)


def _reading(guest: Guest) -> Callable[[int, int], bytes]:
    # one paging form for the whole answer: the registers are read once
    return functools.partial(guest.read_virtual, form=guest.paging())
