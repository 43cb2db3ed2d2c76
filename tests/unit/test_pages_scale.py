"""Large guests cost their tables: each is read once, and memory follows what is distinct."""

from __future__ import annotations

import tracemalloc

import pytest

from sevkvm.pages.directmap import DirectMap
from sevkvm.pages.pagemap import PageKind
from tests.support.bench_pages import GIB, DirectMapped, classified

MIB = 1 << 20


@pytest.mark.parametrize(("gib", "large"), [(4, False), (16, False), (32, True)])
def test_each_table_is_read_once_and_each_page_is_right(gib: int, large: bool) -> None:
    guest = DirectMapped(gib * GIB, large)
    pages = classified(guest)
    assert pages.direct_maps == (DirectMap(0xFFFF_8880_0000_0000, -(-guest.end // GIB) * GIB),)
    shared = [run.gpa for run in pages.runs() if run.kind is PageKind.SHARED]
    assert shared == list(range(0, guest.nbytes, 16 * MIB))
    assert pages.conflicts == []


def test_memory_follows_the_runs_not_the_pages() -> None:
    peaks = []
    for gib in (32, 128):
        guest = DirectMapped(gib * GIB, large=True)
        tracemalloc.start()
        pages = classified(guest)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(pages) == gib * 256
    assert peaks[1] < 5 * peaks[0]
    assert peaks[1] < 16 * MIB
