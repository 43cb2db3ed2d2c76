"""``sevkvm translate``: where guest-virtual addresses go, by the guest's own page tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from sevkvm.abi import x86
from sevkvm.cli.command import command as sevkvm_command
from sevkvm.cli.options import GuestSession, guest_options, json_option
from sevkvm.cli.render import hexadecimal, print_json, print_table, printable, size
from sevkvm.cli.values import ADDRESS
from sevkvm.errors import EXIT_FAILURE

if TYPE_CHECKING:
    from sevkvm.memory.source import SlotMap
    from sevkvm.paging.form import PagingForm
    from sevkvm.paging.walk import Translation


@sevkvm_command(
    "translate",
    examples="""
    sevkvm translate --pid 4242 0xffffffff81000000
    # every level of the walk, with the entries as the guest stores them
    sevkvm translate --pid 4242 -v 0xffff888000100000 0xffff888000200000
    # by other page tables than the first vCPU's
    sevkvm translate --pid 4242 --vcpu 3 0x7ffff7dd5000
    sevkvm translate --pid 4242 --cr3 0x10a000 0x7ffff7dd5000
    """,
)
@click.argument("gvas", metavar="GVA...", nargs=-1, required=True, type=ADDRESS)
@click.option("-v", "--verbose", is_flag=True, help="Show every level: table, index, entry, C-bit, flags.")
@guest_options
@json_option
def command(session: GuestSession, gvas: tuple[int, ...], verbose: bool, as_json: bool) -> None:
    """Translate guest-virtual addresses to guest-physical ones through the guest's own page tables.

    Tells the page's size, whether it is private (C-bit set in the last entry), its rights (of the whole walk), and
    where the VMM keeps it. An address that is not mapped is answered with where the walk ended and why; the exit
    status is then 1.
    """
    with session.open() as guest, guest.held(needed=False):
        form = guest.paging()
        answers = [guest.translate(gva, form) for gva in gvas]
    if as_json:
        print_json([_as_json(answer, form, guest.slots, verbose) for answer in answers])
    else:
        for answer in answers:
            _print(answer, form, guest.slots, verbose, encrypted=guest.sev.encrypted)
    if any(answer.gpa is None for answer in answers):
        click.get_current_context().exit(EXIT_FAILURE)


def _print(answer: Translation, form: PagingForm, slots: SlotMap, verbose: bool, *, encrypted: bool) -> None:
    from sevkvm.cli.translate_report import details, entry_digits

    digits = entry_digits(form)
    if answer.gpa is None or answer.page_nbytes is None:
        click.echo(f"0x{answer.gva:016x}: not mapped: {_where(answer, digits)}")
    else:
        words = [
            f"gpa 0x{answer.gpa:x}",
            f"{size(answer.page_nbytes)} page",
            *(["private" if answer.private else "shared"] if encrypted else []),
            "writable" if answer.writable else "read-only",
            "user" if answer.user else "kernel",
            "no-execute" if answer.nx else "executable",
        ]
        click.echo(f"0x{answer.gva:016x}: {', '.join(words)}")
    for line in details(answer, form, slots):
        click.echo(f"  {printable(line)}")
    if verbose and answer.steps:
        rows = [
            (
                x86.LEVEL_NAMES[step.level],
                f"0x{step.table_gpa:x}",
                str(step.index),
                f"0x{step.entry:0{digits}x}",
                "C" if step.cbit else "-",
                " ".join(x86.entry_flags(step.entry, step.level)) or "-",
            )
            for step in answer.steps
        ]
        print_table(("LEVEL", "TABLE", "INDEX", "ENTRY", "C-BIT", "FLAGS"), rows, indent="  ")


def _where(answer: Translation, digits: int) -> str:
    if not answer.steps:
        return f"{answer.fault}"
    step = answer.steps[-1]
    name = x86.LEVEL_NAMES[step.level]
    entry = f"0x{step.entry:0{digits}x}"
    return f"{answer.fault} at {name} (level {step.level}), index {step.index}, entry {entry}"


def _as_json(answer: Translation, form: PagingForm, slots: SlotMap, verbose: bool) -> dict[str, Any]:
    from sevkvm.cli.translate_report import whereabouts

    hit = answer.gpa is not None
    last = None if hit or not answer.steps else answer.steps[-1]
    found: dict[str, Any] = {
        "gva": hexadecimal(answer.gva),
        "gpa": hexadecimal(answer.gpa),
        "page_size": answer.page_nbytes,
        "private": answer.private if hit else None,
        "writable": answer.writable if hit else None,
        "user": answer.user if hit else None,
        "nx": answer.nx if hit else None,
        "reason": answer.fault,
        "level": last.level if last else None,
        "index": last.index if last else None,
        "entry": hexadecimal(last.entry) if last else None,
        **whereabouts(answer, form, slots),
    }
    if verbose:
        found["steps"] = [
            {
                "level": step.level,
                "name": x86.LEVEL_NAMES[step.level],
                "table_gpa": hexadecimal(step.table_gpa),
                "index": step.index,
                "entry": hexadecimal(step.entry),
                "cbit": step.cbit,
                "flags": x86.entry_flags(step.entry, step.level),
            }
            for step in answer.steps
        ]
    return found
