"""``sevkvm dump``: guest memory in the clear, as a file."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import click

from sevkvm.cli.command import command as sevkvm_command
from sevkvm.cli.options import GuestSession, guest_options, json_option
from sevkvm.cli.progress import progress_bar
from sevkvm.cli.render import hexadecimal, size
from sevkvm.cli.run import say, warn
from sevkvm.cli.values import RANGE, Range
from sevkvm.errors import EXIT_HOLES

if TYPE_CHECKING:
    from sevkvm.dump import DumpResult, Hole
    from sevkvm.guest import Guest
    from sevkvm.pages.classify import PageMap

_HOLES_TOLD = 10
_REASONS = {
    "not-mapped": "not mapped",
    "unreadable": "could not be read",
    "unreadable-sampled": "could not be read (samples tried)",
    "skipped": "left out",
}


@sevkvm_command(
    "dump",
    examples="""
    sevkvm dump --pid 4242 -o guest.raw
    # an ELF core with registers, for gdb and others
    sevkvm dump --pid 4242 --format elf -o guest.core
    # the first MiB; the byte at gpa START is the file's first
    sevkvm dump --pid 4242 --gpa 0:1M -o low.raw
    # what one range of virtual addresses holds
    sevkvm dump --pid 4242 --gva 0xffffffff81000000:+16M -o kernel.raw
    # the guest runs on meanwhile; compressed on the way
    sevkvm dump --pid 4242 --live -o - | zstd > guest.raw.zst
    """,
)
@click.option("-o", "--output", "output", metavar="FILE", required=True, help="Where to; - is stdout.")
@click.option(
    "--format",
    "file_format",
    type=click.Choice(["raw", "elf"]),
    default="raw",
    show_default=True,
    help="raw: a byte's offset is its address less START. elf: a core file.",
)
@click.option("--gpa", type=RANGE, metavar="START:END", help="Only these guest-physical addresses.")
@click.option("--gva", type=RANGE, metavar="START:END", help="These guest-virtual addresses.")
@click.option("--live", is_flag=True, help="Let the guest run meanwhile: not one moment in time.")
@click.option("--force", is_flag=True, help="Overwrite FILE.")
@click.option(
    "--no-scan",
    is_flag=True,
    help="Do not walk the page tables for pages the guest shares: read all memory as private.",
)
@guest_options
@json_option
def command(
    session: GuestSession,
    output: str,
    file_format: str,
    gpa: Range | None,
    gva: Range | None,
    live: bool,
    force: bool,
    no_scan: bool,
    as_json: bool,
) -> None:
    """Write guest memory, decrypted, to a file.

    The vCPUs stand still while memory is copied, unless --live. The file appears under its name when it is complete
    and not before; nobody else may read it (mode 0600). Memory that cannot be read becomes a hole: it is told on
    stderr, and the exit status is 6. A guest whose policy forbids debugging is refused before any file exists.
    --json prints a summary on stdout, or on stderr with -o -.
    """
    from sevkvm.dump import DumpFormat, DumpOptions, dump_guest, prepare

    if gpa and gva:
        raise click.UsageError("--gpa and --gva exclude each other", click.get_current_context())
    target = prepare(output, force=force)
    options = DumpOptions(
        DumpFormat(file_format),
        gpa=(gpa.start, gpa.end) if gpa else None,
        gva=(gva.start, gva.end) if gva else None,
        live=live,
    )
    # The bar is made before the guest is stopped: importing and drawing it takes longer than a small dump.
    with (
        progress_bar("dumping") as progress,
        session.open() as guest,
        nullcontext() if live else guest.held(),
    ):
        # a range of virtual addresses tells by itself which pages are private
        pages = _page_map(guest, scan=not (no_scan or gva))
        result = dump_guest(guest, options, pages, target, progress)
    _tell(result, pages, output, "gva" if gva else "gpa")
    if as_json:
        import json

        answer = _as_json(result, pages, output, "gva" if gva else "gpa")
        click.echo(json.dumps(answer, indent=2), err=output == "-")
    if not result.complete:
        click.get_current_context().exit(EXIT_HOLES)


def _page_map(guest: Guest, *, scan: bool) -> PageMap:
    """Which pages to decrypt. What no page table tells is taken as private: only the guest itself shares pages."""
    from sevkvm.errors import RegistersUnavailable
    from sevkvm.pages.classify import PageKind, classify, uniform

    if not guest.sev.encrypted:
        return uniform(guest.slots, PageKind.PLAIN)
    if not scan:
        return uniform(guest.slots, PageKind.UNMAPPED)
    try:
        forms = guest.forms()
    except RegistersUnavailable as reason:
        warn(f"{reason}; without page tables all memory is taken as private (name the tables with --cr3)")
        forms = []
    else:
        if not forms:
            warn("no vCPU uses 64-bit page tables; all memory is taken as private")
    if not forms:
        return uniform(guest.slots, PageKind.UNMAPPED)
    return classify(guest.memory, forms, guest.slots)


def _tell(result: DumpResult, pages: PageMap, output: str, space: str) -> None:
    if pages.conflicts:
        nbytes = sum(nbytes for _, nbytes in pages.conflicts)
        warn(f"{size(nbytes)} are mapped both as private and as shared; they were read as private")
    if pages.scan and (pages.scan.unreadable_count or pages.scan.limits_hit):
        warn("not all page tables could be read: pages that only they tell as shared were read as private")
    if result.registers_missing:
        warn(f"the file holds no registers: {result.registers_missing}")
    lost = _losses(result)
    for hole in lost[:_HOLES_TOLD]:
        zeros = "; the file shows zeros there" if hole.zero_filled else ""
        warn(
            f"{space} 0x{hole.address:x}:+0x{hole.nbytes:x} {_REASONS.get(hole.reason.value, hole.reason.value)}{zeros}"
        )
    if len(lost) > _HOLES_TOLD:
        warn(f"and {len(lost) - _HOLES_TOLD} more holes; --json lists all")
    where = "stdout" if output == "-" else output
    missing = sum(hole.nbytes for hole in lost)
    end = f", {size(missing)} missing" if lost else ""
    say(f"{where}: {size(result.copied_nbytes)} of guest memory in {len(result.ranges)} ranges{end}")


def _losses(result: DumpResult) -> list[Hole]:
    """Holes that are not simply how the machine is laid out."""
    return [hole for hole in result.holes if hole.reason.value != "not-ram"]


def _as_json(result: DumpResult, pages: PageMap, output: str, space: str) -> dict[str, Any]:
    return {
        "output": output,
        "format": result.format.value,
        "address_space": space,
        "file_size": result.file_nbytes,
        "copied": result.copied_nbytes,
        "complete": result.complete,
        "live": result.live,
        "vcpus": result.vcpus,
        "registers_missing": result.registers_missing,
        "pages": {kind.name.lower(): nbytes for kind, nbytes in pages.totals().items()}
        if space == "gpa"
        else None,
        "ranges": [
            {
                "address": hexadecimal(placed.piece.address),
                "gpa": hexadecimal(placed.piece.gpa),
                "size": placed.piece.nbytes,
                "offset": placed.offset,
            }
            for placed in result.ranges
        ],
        "holes": [
            {
                "address": hexadecimal(hole.address),
                "size": hole.nbytes,
                "reason": hole.reason.value,
                "zero_filled": hole.zero_filled,
            }
            for hole in result.holes
        ],
    }
