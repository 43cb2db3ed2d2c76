"""``sevkvm dump``: guest memory in the clear, as a file."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import click

from sevkvm.cli.command import command as sevkvm_command
from sevkvm.cli.dump_beside import Beside, options_json
from sevkvm.cli.dump_pagemap import pagemap_target, write_pagemap
from sevkvm.cli.dump_report import summary, tell
from sevkvm.cli.options import GuestSession, guest_options, json_option
from sevkvm.cli.page_map import page_map
from sevkvm.cli.progress import progress_bar
from sevkvm.cli.values import LEVEL, RANGE, SIZE, Range
from sevkvm.errors import EXIT_HOLES

if TYPE_CHECKING:
    from sevkvm.attach import Needs
    from sevkvm.dump import DumpOptions
    from sevkvm.guest import Guest


@sevkvm_command(
    "dump",
    examples="""
    sevkvm dump --pid 4242 -o guest.raw
    # an ELF core with registers, for gdb and others
    sevkvm dump --pid 4242 --format elf -o guest.core
    # the same, with the kernel at its virtual addresses for gdb
    sevkvm dump --pid 4242 --format elf --virtual -o guest.core
    # small, for crash, drgn and makedumpfile
    sevkvm dump --pid 4242 --format kdump --compress zstd -o guest.kdump
    # the first MiB; the byte at gpa START is the file's first
    sevkvm dump --pid 4242 --gpa 0:1M -o low.raw
    # what one range of virtual addresses holds
    sevkvm dump --pid 4242 --gva 0xffffffff81000000:+16M -o kernel.raw
    # the guest runs on meanwhile; compressed on the way
    sevkvm dump --pid 4242 --live -o - | zstd > guest.raw.zst
    """,
)
@click.option(
    "-o",
    "--output",
    "output",
    metavar="FILE",
    required=True,
    help="Where to; - is stdout, s3://... a store (extra: remote).",
)
@click.option(
    "--format",
    "file_format",
    type=click.Choice(["raw", "elf", "kdump", "lime", "padded"]),
    default="raw",
    show_default=True,
    help="raw: a byte's offset is its address less START; sparse. elf: a core file. "
    "kdump: compressed page by page, as makedumpfile's. lime: ranges with headers. "
    "padded: a byte's offset is its gpa, gaps are zeros on the disk too.",
)
@click.option(
    "--compress",
    type=click.Choice(["zlib", "zstd", "snappy", "lzo", "none"]),
    default="zlib",
    show_default=True,
    help="How --format kdump compresses; all but zlib need more of the programs that read it.",
)
@click.option("--gpa", type=RANGE, metavar="START:END", help="Only these guest-physical addresses.")
@click.option("--gva", type=RANGE, metavar="START:END", help="These guest-virtual addresses.")
@click.option(
    "--cbit",
    type=click.Choice(["auto", "keep", "strip", "alias"]),
    default="auto",
    show_default=True,
    help="The C-bit in page tables. keep: as it is. strip: taken out, so that every reader can follow them. alias: "
    "kept, with memory at gpa | C-bit too (elf). auto: strip for elf and kdump if it can be done, else as it is.",
)
@click.option(
    "--unmapped",
    type=click.Choice(["private", "shared", "skip"]),
    default="private",
    show_default=True,
    help="Pages that no page table reaches. private, shared: read them so. skip: leave them out.",
)
@click.option(
    "-d",
    "--exclude",
    type=LEVEL,
    metavar="WHAT",
    help="Leave pages out of --format kdump, by what the guest's kernel says of them: cache, cache-private, user, free "
    "(with commas), or the sum of 2, 4, 8, 16 for these, as makedumpfile's -d. zero, 1: zeros take no room anyway.",
)
@click.option(
    "--virtual",
    is_flag=True,
    help="Let the headers (elf) show memory at the virtual addresses of the vCPUs, too, as gdb wants them.",
)
@click.option(
    "--live",
    is_flag=True,
    help="Let the guest run meanwhile: not one moment in time, which elf and kdump files say.",
)
@click.option(
    "--split", type=SIZE, metavar="SIZE", help="FILE.000, FILE.001, ... of this size; cat joins them."
)
@click.option("--sha256", is_flag=True, help="Write FILE.sha256, for `sha256sum -c`.")
@click.option(
    "--manifest", is_flag=True, help="Write FILE.json: host, guest, options, time, what is missing."
)
@click.option(
    "--pagemap", metavar="FILE", help="Write how each page was read, as JSON; `pages --diff` takes it, too."
)
@click.option("--force", is_flag=True, help="Overwrite FILE.")
@click.option(
    "--no-space-check", is_flag=True, help="Begin even if FILE may turn out too large for its file system."
)
@click.option(
    "--no-scan",
    is_flag=True,
    help="Do not walk the page tables for pages the guest shares: read all memory as --unmapped says.",
)
@guest_options
@json_option
def command(
    session: GuestSession,
    output: str,
    file_format: str,
    compress: str,
    gpa: Range | None,
    gva: Range | None,
    cbit: str,
    unmapped: str,
    exclude: int | None,
    virtual: bool,
    live: bool,
    split: int | None,
    sha256: bool,
    manifest: bool,
    pagemap: str | None,
    force: bool,
    no_space_check: bool,
    no_scan: bool,
    as_json: bool,
) -> None:
    """Write guest memory, decrypted, to a file.

    The vCPUs stand still while memory is copied, unless --live. The file appears under its name when it is complete
    and not before; nobody else may read it (mode 0600). Memory that cannot be read becomes a hole: it is told on
    stderr, and the exit status is 6. A guest whose policy forbids debugging is refused before any file exists.
    kdump leaves out ROM above all RAM, unless --gpa asks for it.
    --json prints a summary on stdout, or on stderr with -o -.
    """
    from sevkvm.dump import CbitMode, DumpFormat, DumpOptions, Exclude, Unmapped, check, dump_guest

    if gpa and gva:
        raise click.UsageError("--gpa and --gva exclude each other", click.get_current_context())
    if no_scan and unmapped == "skip":
        raise click.UsageError(
            "--no-scan and --unmapped skip exclude each other", click.get_current_context()
        )
    beside = Beside(
        output, force=force, split=split, check_space=not no_space_check, sha256=sha256, manifest=manifest
    )
    options = DumpOptions(
        DumpFormat(file_format),
        gpa=(gpa.start, gpa.end) if gpa else None,
        gva=(gva.start, gva.end) if gva else None,
        live=live,
        compress=compress,
        cbit=CbitMode(cbit),
        unmapped=Unmapped(unmapped),
        exclude=Exclude(exclude or 0),
        virtual=virtual,
    )
    mapped = None if pagemap is None else pagemap_target(pagemap, output, force=force, gva=gva is not None)
    check(options, beside.target)
    needs = _needs(session, options, scan=not (no_scan or gva))
    # The bar is made before the guest is stopped: importing and drawing it takes longer than a small dump.
    with (
        progress_bar("dumping") as progress,
        session.open(needs=needs, reach=_reach(session, options)) as guest,
        nullcontext() if live else guest.held(),
    ):
        # a range of virtual addresses tells by itself which pages are private
        pages = page_map(guest, scan=not (no_scan or gva), unmapped=unmapped)
        beside.begin()
        result = dump_guest(guest, options, pages, beside.target, progress)
        beside.end()
        told = _status(guest) if beside.wants_manifest else None
    space = "gva" if gva else "gpa"
    answer = summary(result, pages, output, space)
    asked = options_json(options) | {"scan": not no_scan, "split": split}
    beside.write(told, asked, answer)
    if mapped is not None:
        write_pagemap(mapped, guest, options, pages, result)
    tell(result, pages, output, space)
    if as_json:
        import json

        click.echo(json.dumps(answer, indent=2), err=output == "-")
    if not result.complete:
        click.get_current_context().exit(EXIT_HOLES)


def _needs(session: GuestSession, options: DumpOptions, *, scan: bool) -> Needs:
    """Of a guest that runs on just its memory, where neither the format nor the page tables ask for registers."""
    from sevkvm.attach import Needs
    from sevkvm.dump import DumpFormat

    bare = options.format in (DumpFormat.RAW, DumpFormat.LIME, DumpFormat.PADDED)
    roots = session.arguments["cr3"] is not None or not (scan or options.gva)
    return Needs.MEMORY if options.live and bare and roots else Needs.ALL


def _reach(session: GuestSession, options: DumpOptions) -> tuple[int, int] | None:
    """Page tables may be anywhere."""
    return options.gpa if session.arguments["cr3"] is None else None


def _status(guest: Guest) -> dict[str, Any] | None:
    """For the manifest; a guest that is a file has no status of its own."""
    from sevkvm.cli.status import status_json

    return status_json(guest) if guest.contents is None else None
