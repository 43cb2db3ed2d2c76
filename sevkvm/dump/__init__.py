"""Dump files: a pure layout, one writer a format, and a target that appears only when it is complete."""

from sevkvm.dump.formats import check
from sevkvm.dump.job import DumpOptions, DumpResult, dump_guest
from sevkvm.dump.output import Target, prepare
from sevkvm.dump.pieces import Hole, HoleReason
from sevkvm.dump.plan import DumpFormat

__all__ = [
    "DumpFormat",
    "DumpOptions",
    "DumpResult",
    "Hole",
    "HoleReason",
    "Target",
    "check",
    "dump_guest",
    "prepare",
]
