"""Listings of very large address spaces: how often tables are fetched, in how many batches, with how much memory.

How long it takes is for scripts/bench.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sevkvm.paging.form import PagingForm
from sevkvm.paging.listing import Listing
from sevkvm.paging.mode import PagingMode
from tests.support.giant import GIB, Giant, GiantReader
from tests.support.walker import leaves, lookup, table_pages

ROOT = Path(__file__).parents[2]
FORM = PagingForm(PagingMode.LEVEL4, 0)
PAGE = 4096
WINDOW = 256
MEM_LINE, TLB_LINE = 55, 45
CACHE_NBYTES = 32 << 20

LIST_IN_A_PROCESS = """
import sys
from tests.support.giant import Giant, GiantReader
from sevkvm.paging.form import PagingForm
from sevkvm.paging.listing import Listing
from sevkvm.paging.mode import PagingMode

def peak_kib():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM:"))

before = peak_kib()
giant = Giant(int(sys.argv[1]))
listing = Listing(GiantReader(giant), PagingForm(PagingMode.LEVEL4, 0))
assert len(b"".join(listing.runs_text())) == 55
assert listing.report.tables == giant.ntables
print(peak_kib() - before)
"""


def listed(giant: Giant, *ranges: tuple[int, int]) -> tuple[GiantReader, Listing]:
    reader = GiantReader(giant)
    return reader, Listing(reader, FORM, ranges=ranges)


@pytest.mark.parametrize("step", [1, 8])
def test_the_giant_maps_what_it_says(step: int) -> None:
    giant = Giant(GIB, step)
    ram = memoryview(b"".join(giant.page(gpa) or b"" for gpa in range(0, giant.ntables * PAGE, PAGE)))
    assert len(ram) == giant.ntables * PAGE
    assert giant.page(len(ram)) is None
    assert table_pages(ram, 0, 4, None) == set(range(0, len(ram), PAGE))
    found = list(leaves(ram, 0, 4, None))
    assert [(leaf.gva, leaf.gpa) for leaf in found] == [(gva, gva) for gva in range(0, GIB, step * PAGE)]
    assert len(found) == giant.npages
    assert lookup(ram, 0, 4, None, GIB) is None


@pytest.mark.parametrize("gib", [1, 4, 16])
def test_each_table_is_fetched_once_in_few_batches(gib: int) -> None:
    giant = Giant(gib * GIB)
    reader, listing = listed(giant)
    assert b"".join(listing.runs_text()) == b"%016x-%016x %016x -rw\n" % (0, gib * GIB, gib * GIB)
    report = listing.report
    assert (report.tables, report.refetched, report.leaves) == (giant.ntables, 0, giant.npages)
    assert sum(reader.batches) == giant.ntables
    assert len(reader.batches) <= 4 + giant.ntables // WINDOW
    assert max(reader.batches) <= WINDOW


def test_as_many_runs_as_pages() -> None:
    giant = Giant(4 * GIB, 8)
    reader, listing = listed(giant)
    assert sum(map(len, listing.runs_text())) == giant.nruns * MEM_LINE
    assert sum(reader.batches) == giant.ntables
    assert sum(map(len, listing.leaves_text())) == giant.npages * TLB_LINE
    assert sum(reader.batches) == 2 * giant.ntables


def test_a_range_costs_its_own_tables() -> None:
    reader, listing = listed(Giant(1024 * GIB), (700 * GIB, 701 * GIB))
    assert [(run.gva, run.nbytes) for run in listing.runs()] == [(700 * GIB, GIB)]
    assert sum(reader.batches) == listing.report.tables == 512 + 3


def test_the_first_line_of_a_terabyte_comes_before_most_tables_are_fetched() -> None:
    giant = Giant(1024 * GIB, 8)
    reader, listing = listed(giant)
    assert next(listing.runs_text()).startswith(b"%016x-%016x %016x -rw\n" % (0, PAGE, PAGE))
    assert sum(reader.batches) <= 4 * WINDOW + 3


def test_memory_does_not_grow_with_what_is_mapped() -> None:
    argv = [sys.executable, "-c", LIST_IN_A_PROCESS]
    peaks = [
        int(
            subprocess.run([*argv, str(nbytes)], capture_output=True, check=True, timeout=60, cwd=ROOT).stdout
        )
        for nbytes in (GIB, 64 * GIB)
    ]
    # 64 GiB have 128 MiB of tables
    assert peaks[1] * 1024 < CACHE_NBYTES + (16 << 20), peaks
