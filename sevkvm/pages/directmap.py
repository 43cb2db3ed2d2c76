"""Find a kernel's direct map: the stretch of its half of the addresses that maps all RAM in order.

What it says of a page is the kernel's own word. Other mappings of the page may be stale, temporary or a process's.
Nothing of Linux is asked for: a mapping that starts at a multiple of 1 GiB (as those of Linux and the BSDs do) and
holds half of the RAM, each page where it must be, is one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from sevkvm.abi.x86 import PAGE_MASK, TABLE_ENTRIES
from sevkvm.native import EntryFlag
from sevkvm.paging.decoder import decoder_for
from sevkvm.paging.walk import Walker

if TYPE_CHECKING:
    from sevkvm.memory.source import SlotMap
    from sevkvm.paging.decoder import TableDecoder, TableRun
    from sevkvm.paging.fetch import TableReader
    from sevkvm.paging.form import PagingForm

ALIGN: Final = 1 << 30  # one entry of level 3
_SAMPLES: Final = 64
_CANDIDATES: Final = 8
_TABLES: Final = 1024  # looked into at one level
_PROBES: Final = 16  # entries of one table of level 3
_LEAF: Final = int(EntryFlag.LEAF)
_RESERVED: Final = int(EntryFlag.RESERVED)


class DirectMap(NamedTuple):
    """Where gpa 0 would be (``gva``, canonical), and how much follows; both multiples of 1 GiB."""

    gva: int
    nbytes: int


def find_direct_map(
    reader: TableReader, form: PagingForm, slots: SlotMap, known: Sequence[DirectMap] = ()
) -> DirectMap | None:
    """The direct map of an address space; None if it has none. ``known``: those of others, which are tried first.

    Reads a few tables for each 512 GiB that is mapped, and those of 64 pages.
    """
    ram = [slot for slot in slots if not slot.readonly]
    if not form.mode.long or not ram:
        return None
    nbytes = -(-ram[-1].end // ALIGN) * ALIGN
    samples = list(_samples(slots))
    for each in known:
        if _share(reader, form, each.gva, samples) * 2 >= len(samples):
            return DirectMap(each.gva, nbytes)
    votes: Counter[int] = Counter()
    for gva, gpa in _first_pages(reader, form):
        start = gva - gpa
        if start % ALIGN == 0 and start >= _upper_half(form) and start + nbytes <= 1 << 64:
            votes[start] += 1
    shares = {start: _share(reader, form, start, samples) for start, _ in votes.most_common(_CANDIDATES)}
    best = max(shares, key=lambda start: shares[start], default=None)
    if best is None or shares[best] * 2 < len(samples):
        return None
    return DirectMap(best, nbytes)


def _upper_half(form: PagingForm) -> int:
    """The first gva of the kernel's half."""
    return (1 << 64) - (1 << 11 + 9 * form.levels)


def _samples(slots: SlotMap) -> Iterator[int]:
    """Pages of RAM, evenly spread."""
    ram = [slot for slot in slots if not slot.readonly]
    total = sum(slot.nbytes for slot in ram)
    offsets = (total * (2 * number + 1) // (2 * _SAMPLES) for number in range(_SAMPLES))
    at, before = 0, 0
    for offset in offsets:
        while offset - before >= ram[at].nbytes:
            before += ram[at].nbytes
            at += 1
        yield ram[at].gpa + (offset - before & ~PAGE_MASK)


def _share(reader: TableReader, form: PagingForm, start: int, samples: Sequence[int]) -> int:
    """How many of the samples are mapped where a direct map from ``start`` has them."""
    walker = Walker(reader, form)
    return sum(walker.translate(start + gpa).gpa == gpa for gpa in samples)


def _first_pages(reader: TableReader, form: PagingForm) -> Iterator[tuple[int, int]]:
    """(gva, gpa) of the first page below some entries of level 3 of the kernel's half."""
    decoder = decoder_for(form)
    canonical = (1 << 64) - (1 << 12 + 9 * form.levels)
    tables = [(canonical, form.root_gpa)]
    for level in range(form.levels, 0, -1):
        shift = decoder.levels[level].shift
        gpas = list(dict.fromkeys(gpa for _, gpa in tables))
        pages = zip(gpas, reader.read_tables(gpas), strict=True)
        # a table that many entries lead to is decoded once
        runs = {gpa: _some(decoder, level, page, form.levels) for gpa, page in pages if page is not None}
        lower: list[tuple[int, int]] = []
        for gva, gpa in tables:
            for run in runs.get(gpa, ()):
                at = gva + (run.first << shift)
                if run.flags & _LEAF:
                    yield at, run.gpa
                elif len(lower) < _TABLES:
                    lower.append((at, run.gpa))
        tables = lower


def _some(decoder: TableDecoder, level: int, table: bytes, top: int) -> list[TableRun]:
    """The entries to go on with: of the top table those of the kernel's half, of the lowest two levels the first."""
    runs = [run for run in decoder.table(level, table) if not run.flags & _RESERVED]
    if level == top:
        runs = [run for run in runs if run.first >= TABLE_ENTRIES // 2]
    if level < 3:
        return runs[:1]
    return runs[:: -(-len(runs) // _PROBES)] if level == 3 and runs else runs
