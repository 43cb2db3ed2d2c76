"""What to dump and how; which combinations there are."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntFlag
from typing import TYPE_CHECKING

from sevkvm import errors
from sevkvm.dump.codec import find_codec
from sevkvm.dump.plan import DumpFormat
from sevkvm.dump.unmapped import Unmapped

if TYPE_CHECKING:
    from sevkvm.dump.output import Target

WITH_REGISTERS = frozenset({DumpFormat.ELF, DumpFormat.KDUMP})
WITH_VMCOREINFO = WITH_REGISTERS  # made for readers that follow page tables
WITH_ALIASES = frozenset({DumpFormat.ELF})
WITH_VIEWS = WITH_ALIASES
PHYSICAL_ONLY = frozenset({DumpFormat.KDUMP, DumpFormat.LIME, DumpFormat.PADDED})


class CbitMode(str, Enum):
    """How the file shows the C-bit of page-table entries.

    KEEP: every byte as it is in the guest. STRIP: taken out of the entries of all page tables. ALIAS: kept, and the
    file's headers have the memory a second time, at gpa | C-bit. AUTO: what most readers of the format open.
    """

    AUTO = "auto"
    KEEP = "keep"
    STRIP = "strip"
    ALIAS = "alias"


class Exclude(IntFlag):
    """What to leave out; the numbers are those of makedumpfile's dump levels.

    ZERO: pages of zeros, which share one page of the file as makedumpfile's do, asked for or not. CACHE: of files,
    without data of a file system's own; CACHE_PRIVATE: all of the cache. USER: memory of processes that is no file's.
    FREE: what nobody uses.
    """

    NOTHING = 0
    ZERO = 1
    CACHE = 2
    CACHE_PRIVATE = 4
    USER = 8
    FREE = 16


@dataclass(frozen=True)
class DumpOptions:
    """What to dump. ``gpa`` or ``gva`` is a half-open range; neither means all guest memory.

    live: let the vCPUs run meanwhile; the file then shows no single moment. compress: a name of ``codec.NAMES``, for
    the formats that compress. unmapped: what becomes of pages that no page table reaches. exclude:
    what to leave out of kdump files, by the kernel's own word. virtual: show all memory
    at its virtual addresses, too.
    """

    format: DumpFormat = DumpFormat.RAW
    gpa: tuple[int, int] | None = None
    gva: tuple[int, int] | None = None
    live: bool = False
    compress: str = "zlib"
    cbit: CbitMode = CbitMode.AUTO
    unmapped: Unmapped = Unmapped.PRIVATE
    exclude: Exclude = Exclude.NOTHING
    virtual: bool = False


def check(options: DumpOptions, target: Target) -> None:
    """UsageError if there is no such dump, or not to there; before anybody is attached to."""
    name = options.format.value
    if options.gva is not None and options.format in PHYSICAL_ONLY:
        raise errors.UsageError(
            f"--format {name} is of guest-physical addresses",
            help="a dump of virtual addresses is --format raw or elf",
        )
    if options.gva is not None and options.cbit in (CbitMode.STRIP, CbitMode.ALIAS):
        raise errors.UsageError(
            f"--cbit {options.cbit.value} and --gva exclude each other",
            help="a dump of virtual addresses has no page tables for a reader to follow",
        )
    if options.gva is not None and options.unmapped is not Unmapped.PRIVATE:
        raise errors.UsageError(
            f"--unmapped {options.unmapped.value} and --gva exclude each other",
            help="a dump of virtual addresses has only what page tables map",
        )
    if options.virtual and (options.gva is not None or options.format not in WITH_VIEWS):
        raise errors.UsageError(
            f"--virtual and {'--gva' if options.gva is not None else f'--format {name}'} exclude each other",
            help="it adds virtual addresses to a dump of physical memory in --format elf",
        )
    if options.cbit is CbitMode.ALIAS and options.format not in WITH_ALIASES:
        raise errors.UsageError(
            f"--format {name} cannot show memory twice, as --cbit alias does",
            help="use --format elf, or --cbit strip",
        )
    if options.exclude & ~Exclude.ZERO and options.live:
        raise errors.UsageError(
            "--exclude and --live exclude each other: what pages are used for changes meanwhile",
            help="name only zero, or let makedumpfile filter the dump",
        )
    if options.format is not DumpFormat.KDUMP:
        if options.exclude:
            raise errors.UsageError(f"--format {name} has all pages", help="--exclude is for --format kdump")
        return
    find_codec(options.compress)
    if not target.seekable:
        raise errors.UsageError(
            f"--format {name} cannot go to a pipe: its start is written last",
            help="name a file, or stream --format elf or lime through a compressor",
        )
