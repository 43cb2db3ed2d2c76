"""What to dump and how; which combinations there are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sevkvm import errors
from sevkvm.dump.codec import find_codec
from sevkvm.dump.plan import DumpFormat

if TYPE_CHECKING:
    from sevkvm.dump.output import Target

WITH_REGISTERS = frozenset({DumpFormat.ELF, DumpFormat.KDUMP})
PHYSICAL_ONLY = frozenset({DumpFormat.KDUMP, DumpFormat.LIME, DumpFormat.PADDED})


@dataclass(frozen=True)
class DumpOptions:
    """What to dump. ``gpa`` or ``gva`` is a half-open range; neither means all guest memory.

    live: let the vCPUs run meanwhile; the file then shows no single moment. compress: a name of ``codec.NAMES``, for
    the formats that compress.
    """

    format: DumpFormat = DumpFormat.RAW
    gpa: tuple[int, int] | None = None
    gva: tuple[int, int] | None = None
    live: bool = False
    compress: str = "zlib"


def check(options: DumpOptions, target: Target) -> None:
    """UsageError if there is no such dump, or not to there; before anybody is attached to."""
    name = options.format.value
    if options.gva is not None and options.format in PHYSICAL_ONLY:
        raise errors.UsageError(
            f"--format {name} is of guest-physical addresses",
            help="a dump of virtual addresses is --format raw or elf",
        )
    if options.format is not DumpFormat.KDUMP:
        return
    find_codec(options.compress)
    if not target.seekable:
        raise errors.UsageError(
            f"--format {name} cannot go to a pipe: its start is written last",
            help="name a file, or stream --format elf or lime through a compressor",
        )
