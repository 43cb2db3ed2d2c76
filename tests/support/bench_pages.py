"""What classifying a large guest costs: rows for scripts/bench, and a guest whose page tables are made when asked for.

Encrypted, from 0 on, all of it in a direct map where Linux has one; one page in 4096 is shared. Cost must follow the
number of tables: 2 MiB pages have 512 times fewer of them.
"""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, Protocol

from sevkvm.memory.source import Slot, SlotMap
from sevkvm.pages.cells import make_cells
from sevkvm.pages.classify import PageMap, classify
from sevkvm.pages.html import html
from sevkvm.pages.survey import complete
from sevkvm.paging.form import PagingForm, PagingMode

GIB: Final = 1 << 30
_PAGE, _LARGE, _NENTRIES = 4096, 2 << 20, 512
_CBIT: Final = 51
_BASE_INDEX: Final = 0x111  # of 0xffff888000000000 in the top table
_LINK, _LEAF, _LARGE_LEAF = 0x067, 1 << 63 | 0x063, 1 << 63 | 0x0E3
_SHARED_EVERY: Final = 4096  # pages


@dataclass
class DirectMapped:
    """A TableReader: ``nbytes`` (whole GiB, at most 64 TiB) mapped by pages of 4 KiB, or of 2 MiB but for shared ones.

    Tables lie behind the memory, level by level. ``read``: how many were asked for; ``made_ns``: what making them took.
    """

    nbytes: int
    large: bool
    read: int = 0
    made_ns: int = 0
    starts: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        at = self.nbytes
        for level, span in ((4, 1 << 48), (3, 1 << 39), (2, GIB), (1, _LARGE)):
            self.starts[level] = at
            at += -(-self.nbytes // span) * _PAGE
        self.end = at

    @property
    def form(self) -> PagingForm:
        return PagingForm(PagingMode.LEVEL4, self.starts[4], _CBIT)

    @property
    def slots(self) -> SlotMap:
        return SlotMap([Slot(0, self.end, 0x7F00_0000_0000)])

    @property
    def ntables(self) -> int:
        """Those that are in use."""
        if not self.large:
            return (self.end - self.nbytes) // _PAGE
        lowest = -(-self.nbytes // (_SHARED_EVERY * _PAGE))
        return (self.starts[1] - self.nbytes) // _PAGE + lowest

    def read_tables(self, gpas: Sequence[int], *, keep: bool = True) -> list[bytes | None]:
        began = time.perf_counter_ns()
        pages: list[bytes | None] = [self._table(gpa) for gpa in gpas]
        self.read += len(gpas)
        self.made_ns += time.perf_counter_ns() - began
        return pages

    def _table(self, gpa: int) -> bytes:
        level = next(level for level in (1, 2, 3, 4) if gpa >= self.starts[level])
        number = (gpa - self.starts[level]) // _PAGE
        if level == 1:
            return self._lowest(number)
        if level == 2 and self.large:
            return self._with_large(number)
        children = (self.starts[level - 1] - self.starts[level]) // _PAGE
        nbelow = -(-self.nbytes // (1 << 3 + 9 * level)) if level > 2 else self.nbytes // _LARGE
        assert number < children
        first = number * _NENTRIES
        count = min(_NENTRIES, nbelow - first)
        entry = self.starts[level - 1] + first * _PAGE | _LINK | 1 << _CBIT
        value = sum((entry + index * _PAGE) << 64 * index for index in range(count))
        return (value << 64 * _BASE_INDEX if level == 4 else value).to_bytes(_PAGE, "little")

    @cached_property
    def _ones(self) -> int:
        return sum(1 << 64 * index for index in range(_NENTRIES))

    @cached_property
    def _steps(self) -> int:
        return sum(index << 64 * index for index in range(_NENTRIES))

    def _lowest(self, number: int) -> bytes:
        """512 pages; the first of each 4096 is shared."""
        first = number * _NENTRIES
        value = (first * _PAGE | _LEAF | 1 << _CBIT) * self._ones + self._steps * _PAGE
        if first % _SHARED_EVERY == 0:
            value -= 1 << _CBIT
        return value.to_bytes(_PAGE, "little")

    def _with_large(self, number: int) -> bytes:
        """512 large pages; one of 8 leads to a table."""
        first = number * _NENTRIES
        value = (first * _LARGE | _LARGE_LEAF | 1 << _CBIT) * self._ones + self._steps * _LARGE
        for index in range(0, _NENTRIES, _SHARED_EVERY * _PAGE // _LARGE):
            entry = value >> 64 * index & (1 << 64) - 1
            table = self.starts[1] + (first + index) * _PAGE | _LINK | 1 << _CBIT
            value += (table - entry) << 64 * index
        return value.to_bytes(_PAGE, "little")


def classified(guest: DirectMapped) -> PageMap:
    """What the benchmark measures; the answer is checked."""
    pages = classify(guest, [guest.form], guest.slots)
    kinds = {kind.value: nbytes for kind, nbytes in pages.totals().items()}
    assert kinds["shared"] == guest.nbytes // _SHARED_EVERY
    assert pages.scan is not None
    assert len(pages.scan.table_gpas) == guest.ntables == guest.read
    return pages


class Report(Protocol):
    """Adds a row to the table."""

    def __call__(self, what: str, samples: list[float], unit: str, note: str = "") -> None: ...


def bench_pages(report: Report, runs: int) -> None:
    """Up to 1 TiB: seconds, and the peak of what Python allocates; then the picture of it."""
    for gib, large in ((64, True), (1024, True), (64, False), (1024, False)):
        times = []
        for _ in range(runs if gib < 1024 or large else 1):
            guest = DirectMapped(gib * GIB, large)
            began = time.perf_counter()
            pages = classified(guest)
            times.append(time.perf_counter() - began - guest.made_ns / 1e9)
        kind = "2 MiB" if large else "4 KiB"
        report(
            f"pages of {gib} GiB in {kind} pages", times, "s", f"{guest.ntables} tables, {len(pages)} runs"
        )
        report("  a table", [1e6 * each / guest.ntables for each in times], "us")
    tracemalloc.start()
    pages = classified(DirectMapped(1024 * GIB, large=True))
    report(
        "pages of 1024 GiB: peak of Python's memory", [tracemalloc.get_traced_memory()[1] / (1 << 20)], "MiB"
    )
    tracemalloc.stop()
    began = time.perf_counter()
    full = complete(pages, DirectMapped(1024 * GIB, large=True).slots)
    make_cells(full, 4096)
    text = html(full, title="", layout="hilbert")
    report("  drawn as HTML", [time.perf_counter() - began], "s", f"{len(text) >> 10} KiB")
