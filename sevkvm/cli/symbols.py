"""``sevkvm symbols``: the names that a guest's kernel has for its own addresses."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from sevkvm.cli.command import command as sevkvm_command
from sevkvm.cli.options import GuestSession, guest_options, json_option
from sevkvm.cli.render import hexadecimal, print_json, printable
from sevkvm.cli.run import say
from sevkvm.cli.symbol_file import symbol_target, write_symbol_file
from sevkvm.cli.values import parse_address
from sevkvm.errors import EXIT_FAILURE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sevkvm.linux.symbols import Symbol, Symbols


@sevkvm_command(
    "symbols",
    examples="""
    # all of them, as in System.map
    sevkvm symbols --pid 4242 > System.map
    # what an address belongs to, where a name is
    sevkvm symbols --pid 4242 0xffffffff810a1234 init_task
    # for gdb: addresses as they are in this guest, KASLR included; of a dump, too
    sevkvm symbols --file guest.core -o kernel.sym
    gdb kernel.sym -ex 'core-file guest.core'
    """,
)
@click.argument("words", metavar="[NAME|GVA]...", nargs=-1)
@click.option("-o", "--output", metavar="FILE", help="Write an ELF file for gdb instead (mode 0600).")
@click.option("--force", is_flag=True, help="Overwrite FILE, even if sevkvm did not make it.")
@guest_options
@json_option
def command(
    session: GuestSession, words: tuple[str, ...], output: str | None, force: bool, as_json: bool
) -> None:
    """Print the symbols of the guest's Linux kernel, read from the table that it keeps of them (Linux 4.6 and later).

    No vmlinux, System.map or debug package is needed, and KASLR does not matter. With NAME or GVA only these are told:
    every address of a name, or the name that is at or next below an address of the kernel's image; the exit status is
    1 if one is unknown. Modules and user programs are not in the table. An address below the image is a per-CPU offset.
    """
    context = click.get_current_context()
    if output is not None and (words or as_json):
        raise click.UsageError("-o excludes --json, NAME and GVA", context)
    if force and output is None:
        raise click.UsageError("--force needs -o", context)
    asked = [(word, _address(word)) for word in words]
    target = None if output is None else symbol_target(output, force=force)
    with session.open() as guest:
        symbols = guest.symbols()
    if target is not None:
        write_symbol_file(target, symbols)
        return
    say(symbols.told)
    if not words:
        _print_all(symbols, as_json=as_json)
    elif not _print_asked(symbols, asked, as_json=as_json):
        context.exit(EXIT_FAILURE)


def _address(word: str) -> int | None:
    """None for a name."""
    if not word[:1].isdigit():
        return None
    try:
        return parse_address(word)
    except ValueError as error:
        raise click.UsageError(str(error), click.get_current_context()) from None


def _print_all(symbols: Symbols, *, as_json: bool) -> None:
    from sevkvm.linux.symbolfile import map_lines

    if as_json:
        print_json(_as_json((symbol, 0) for symbol in symbols))
    else:
        sys.stdout.writelines(f"{line}\n" for line in map_lines(symbols))


def _print_asked(symbols: Symbols, asked: list[tuple[str, int | None]], *, as_json: bool) -> bool:
    """False if something is unknown, which is told on stderr."""
    found: list[tuple[Symbol, int]] = []
    complete = True
    for word, gva in asked:
        if gva is None:
            hits = [(symbol, 0) for symbol in symbols.named(word)]
        else:
            hit = symbols.at(gva)
            hits = [hit] if hit else []
        if not hits:
            what = "is not in the kernel's image" if gva is not None else "is no symbol of the kernel"
            say(f"{printable(word)} {what}")
            complete = False
        found += hits
    if as_json:
        print_json(_as_json(found))
    else:
        for symbol, offset in found:
            label = f"{symbol.name}+0x{offset:x}" if offset else symbol.name
            click.echo(f"0x{symbol.gva + offset:016x}: {label}")
    return complete


def _as_json(found: Iterable[tuple[Symbol, int]]) -> list[dict[str, Any]]:
    return [
        {
            "gva": hexadecimal(symbol.gva + offset),
            "name": symbol.name,
            "offset": offset,
            "letter": symbol.letter,
        }
        for symbol, offset in found
    ]
