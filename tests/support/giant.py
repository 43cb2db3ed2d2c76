"""A guest with gigabytes to a terabyte mapped by 4 KiB pages: its page tables, computed or in the RAM of a real VM.

with giant_vm(Giant(1 << 40)) as arguments:
    ...                      # `sevkvm mem *arguments`

Every page is mapped at its own gpa from 0 on. The tables too lie there, level by level from the root down; page
tables that are neighbours by address are not neighbours in memory, as in a guest that has run for a while.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Final

from sevkvm import native
from tests.support.plainvm import PlainVm

ROOT = Path(__file__).resolve().parents[2]
PAGE_NBYTES: Final = 4096
GIB: Final = 1 << 30
_NENTRIES: Final = 512
_TABLE_FLAGS: Final = 0x067  # P, W, U, A, D
_LEAF_FLAGS: Final = 1 << 63 | 0x063  # NX, P, W, A, D: as a kernel maps its memory
_STRIDE: Final = 0x9E3779B1  # odd: times it, modulo a power of two, is a permutation


def _table(entries: Sequence[int]) -> bytes:
    return b"".join(entry.to_bytes(8, "little") for entry in entries).ljust(PAGE_NBYTES, b"\0")


@dataclass(frozen=True)
class Giant:
    """``nbytes`` of gvas from 0 on, a power of two of at least 1 GiB; every ``step``-th page of them is mapped."""

    nbytes: int
    step: int = 1

    def __post_init__(self) -> None:
        assert self.nbytes >= GIB
        assert self.nbytes & (self.nbytes - 1) == 0
        assert _NENTRIES % self.step == 0

    @property
    def counts(self) -> tuple[int, int, int, int]:
        """Tables of levels 4 to 1, in the order in which they lie."""
        return 1, max(self.nbytes >> 39, 1), self.nbytes >> 30, self.nbytes >> 21

    @property
    def ntables(self) -> int:
        """Distinct table pages. They lie from gpa 0 on, the root first."""
        return sum(self.counts)

    @property
    def npages(self) -> int:
        """Mapped pages."""
        return self.nbytes // PAGE_NBYTES // self.step

    @property
    def nruns(self) -> int:
        """Runs of mapped pages that touch."""
        return 1 if self.step == 1 else self.npages

    def page(self, gpa: int) -> bytes | None:
        """The table that lies there; None if none does."""
        first, number = 0, gpa // PAGE_NBYTES
        for level, count in zip((4, 3, 2), self.counts, strict=False):
            first += count
            if number < count:
                return self._upper(level, number, first)
            number -= count
        return self._page_table(number * self._unstride % self.counts[3]) if number < self.counts[3] else None

    @cached_property
    def _unstride(self) -> int:
        return pow(_STRIDE, -1, self.counts[3])

    def _upper(self, level: int, number: int, first_child: int) -> bytes:
        nchildren = self.counts[5 - level]
        children = range(number * _NENTRIES, min((number + 1) * _NENTRIES, nchildren))
        stride = _STRIDE if level == 2 else 1
        places = (first_child + child * stride % nchildren for child in children)
        return _table([place * PAGE_NBYTES | _TABLE_FLAGS for place in places])

    @cached_property
    def _ones(self) -> int:
        """A table as one number, with 1 in each mapped page's entry."""
        return sum(1 << 64 * index for index in range(0, _NENTRIES, self.step))

    @cached_property
    def _first_page_table(self) -> int:
        indexes = range(0, _NENTRIES, self.step)
        return sum((index * PAGE_NBYTES | _LEAF_FLAGS) << 64 * index for index in indexes)

    def _page_table(self, number: int) -> bytes:
        gpa = number * _NENTRIES * PAGE_NBYTES
        return (self._first_page_table + gpa * self._ones).to_bytes(PAGE_NBYTES, "little")


@dataclass
class GiantReader:
    """Hands out its tables as they are asked for, and remembers how many were."""

    giant: Giant
    batches: list[int] = field(default_factory=list)

    def read_tables(self, gpas: Sequence[int], *, keep: bool = True) -> list[bytes | None]:
        """As TableReader's."""
        self.batches.append(len(gpas))
        return [self.giant.page(gpa) for gpa in gpas]


@contextmanager
def giant_vm(giant: Giant) -> Iterator[list[str]]:
    """A process that holds a KVM VM with these tables in its RAM: the arguments that lead sevkvm to it.

    The RAM takes 2 MiB for each GiB mapped. The vCPU never runs and does not use them: --cr3 does.
    """
    argv = [sys.executable, "-m", "tests.support.giant", str(giant.nbytes), str(giant.step)]
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, text=True
    ) as process:
        try:
            assert process.stdout
            line = process.stdout.readline()
            assert line, f"the VM did not start: exit status {process.wait(10)}"
            arguments: list[str] = json.loads(line)
            yield arguments
        finally:
            process.kill()


def _hold(nbytes: int, step: int) -> None:
    """What the process does, until its input ends."""
    giant = Giant(nbytes, step)
    with PlainVm(giant.ntables * PAGE_NBYTES) as vm:
        for gpa in range(0, len(vm.ram), PAGE_NBYTES):
            vm.ram[gpa : gpa + PAGE_NBYTES] = giant.page(gpa) or b""
        slot = f"0:{len(vm.ram):#x}:{native.address_of(vm.ram):#x}"
        arguments = ["--pid", str(os.getpid()), "--vm-fd", str(vm.vm_fd), "--slot", slot]
        print(json.dumps([*arguments, "--cr3", "0", "--paging", "4level"]), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    _hold(*map(int, sys.argv[1:]))
