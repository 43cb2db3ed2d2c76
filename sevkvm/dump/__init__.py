"""Dump files: a pure layout, one writer a format, and a target that appears only when it is complete."""

from sevkvm.dump.cbit import CbitOutcome
from sevkvm.dump.job import DumpResult, dump_guest
from sevkvm.dump.kernel import KernelFacts, kernel_facts
from sevkvm.dump.options import CbitMode, DumpOptions, check
from sevkvm.dump.output import Target, prepare
from sevkvm.dump.pieces import Hole, HoleReason
from sevkvm.dump.plan import DumpFormat

__all__ = [
    "CbitMode",
    "CbitOutcome",
    "DumpFormat",
    "DumpOptions",
    "DumpResult",
    "Hole",
    "HoleReason",
    "KernelFacts",
    "Target",
    "check",
    "dump_guest",
    "kernel_facts",
    "prepare",
]
