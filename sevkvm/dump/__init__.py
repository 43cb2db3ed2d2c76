"""Dump files: a pure layout, one writer a format, and a target that appears only when it is complete."""

from sevkvm.dump.cbit import CbitOutcome
from sevkvm.dump.digest import DigestTarget
from sevkvm.dump.job import DumpResult, dump_guest
from sevkvm.dump.kernel import KernelFacts, kernel_facts
from sevkvm.dump.options import CbitMode, DumpOptions, Exclude, check
from sevkvm.dump.output import Target, prepare
from sevkvm.dump.pieces import Hole, HoleReason
from sevkvm.dump.plan import DumpFormat
from sevkvm.dump.split import SplitTarget
from sevkvm.dump.unmapped import Unmapped

__all__ = [
    "CbitMode",
    "CbitOutcome",
    "DigestTarget",
    "DumpFormat",
    "DumpOptions",
    "DumpResult",
    "Exclude",
    "Hole",
    "HoleReason",
    "KernelFacts",
    "SplitTarget",
    "Target",
    "Unmapped",
    "check",
    "dump_guest",
    "kernel_facts",
    "prepare",
]
