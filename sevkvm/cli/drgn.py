"""``sevkvm drgn``: drgn on a guest's Linux."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from sevkvm.cli.command import command as sevkvm_command
from sevkvm.cli.options import GuestSession, guest_options
from sevkvm.cli.run import warn
from sevkvm.cli.values import SECONDS, number
from sevkvm.errors import UsageError

if TYPE_CHECKING:
    from sevkvm.cli.drgn_run import Code
    from sevkvm.drgnprog.symbols import SymbolOptions
    from sevkvm.guest import Guest

MAX_AGE_MS = 100  # long enough for a list of processes
_MOST_AGE_MS = 60_000
_BANNER = "Of sevkvm: vcpu_regs(N), a vCPU's registers: prog.stack_trace(vcpu_regs(0))"

hold_option = click.option(
    "--hold",
    type=SECONDS,
    metavar="SECONDS",
    help="Keep the guest from running, for so long at most; it runs if left out.",
)
max_age_option = click.option(
    "--max-age",
    type=number(0, _MOST_AGE_MS),
    default=MAX_AGE_MS,
    show_default=True,
    metavar="MS",
    help="Milliseconds for which a page of a guest that runs is remembered.",
)


@sevkvm_command(
    "drgn",
    examples="""
    # a prompt; symbols are looked for where drgn looks for them
    sevkvm drgn --pid 4242
    # one moment in time: the guest stands still until it is done, but for two seconds at most
    sevkvm drgn --pid 4242 --hold 2 -e 'for task in for_each_task(): print(task.pid.value_(), task.comm)'
    # a script of drgn's, with arguments
    sevkvm drgn --pid 4242 -s vmlinux ./lsmod.py --all
    # what a processor is doing now
    sevkvm drgn --pid 4242 --hold 2 -e 'print(stack_trace(vcpu_regs(0)))'
    # the same of a dump
    sevkvm drgn --file guest.core -e 'print(get_dmesg().decode())'
    """,
)
@click.argument("words", metavar="[SCRIPT [ARG]...]", nargs=-1, type=click.UNPROCESSED)
@click.option("-e", "-c", "code", metavar="CODE", help="Run this code, and leave.")
@click.option(
    "-s",
    "--symbols",
    "files",
    multiple=True,
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False),
    help="Debug symbols; repeatable.",
)
@click.option("--no-default-symbols", is_flag=True, help="Use no symbols but those of -s.")
@hold_option
@max_age_option
@guest_options
def command(
    session: GuestSession,
    words: tuple[str, ...],
    code: str | None,
    files: tuple[str, ...],
    no_default_symbols: bool,
    hold: float | None,
    max_age: int,
) -> None:
    """Debug a guest's Linux with drgn: a prompt, or a script, with `prog` as in drgn's own command.

    Needs drgn (pip install 'sevkvm[drgn]') and the debug symbols of the guest's kernel. Memory is read at memory speed,
    decrypted page by page; the kernel is found in the guest's memory, which needs neither `-device vmcoreinfo` nor a
    monitor. Without --hold the guest runs on, as with drgn on a running kernel: what it changes meanwhile may not fit
    together. Memory that cannot be read is a FaultError, never zeros (docs/drgn.md).
    """
    _require_drgn()
    script = words[0] if words and code is None else None
    if script is not None and not Path(script).is_file():
        raise UsageError(f"{script}: no such script", help="options come before the script, -e takes code")
    if hold is not None and session.file is not None:
        raise click.UsageError("--file and --hold exclude each other", click.get_current_context())
    from sevkvm.cli.drgn_run import told
    from sevkvm.drgnprog.symbols import SymbolOptions

    source = told(code, words)
    with session.open() as guest:
        symbols = SymbolOptions(files, not no_default_symbols)
        _debug(guest, symbols, hold, max_age / 1000, source, words)


command.allow_interspersed_args = False  # what follows a script is the script's


def _require_drgn() -> None:
    try:
        import drgn  # noqa: F401
    except ImportError:
        raise UsageError(
            "this command needs the Python module drgn", help="pip install 'sevkvm[drgn]'"
        ) from None


def _debug(
    guest: Guest,
    symbols: SymbolOptions,
    hold: float | None,
    max_age: float,
    code: Code | None,
    words: tuple[str, ...],
) -> None:
    from sevkvm.cli.drgn_hold import BoundedHold
    from sevkvm.cli.drgn_run import run
    from sevkvm.drgnprog.program import kernel_note, make_program, program_memory
    from sevkvm.drgnprog.symbols import load_symbols
    from sevkvm.drgnprog.vcpus import vcpu_regs

    note = kernel_note(guest)
    memory = program_memory(guest, note, max_age)
    program = make_program(guest, note, memory)
    load_symbols(program, note, symbols, warn)  # takes a second, which a guest need not stand still for
    with BoundedHold(guest, memory, hold):
        run(program, code, words, {"vcpu_regs": vcpu_regs(program, guest, memory)}, _BANNER)
