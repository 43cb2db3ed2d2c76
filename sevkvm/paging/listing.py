"""List what an address space maps, in the order of its addresses: every leaf, or runs of equal rights.

Records flow before the last table is fetched; each table page is fetched once, however many entries lead to it.
The tables are hostile input: memory is bounded by :class:`ListLimits`, and a listing can be cut at any record.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from sevkvm.native import EntryFlag
from sevkvm.paging.engine import Engine, Kind, State, UnreadableTable

if TYPE_CHECKING:
    from sevkvm.paging.fetch import TableReader
    from sevkvm.paging.form import PagingForm

__all__ = ["Leaf", "ListLimits", "ListReport", "Listing", "Run", "UnreadableTable"]

TELL_APART: Final = EntryFlag.WRITABLE | EntryFlag.USER
_LEAF: Final = struct.Struct("<6Q")
_RUN: Final = struct.Struct("<3Q")


class Leaf(NamedTuple):
    """One page: ``entry`` as stored at ``level`` (1 = PT), C-bit included; it is taken off ``gpa``.

    ``flags`` (EntryFlag): WRITABLE and USER and-ed down the walk, NX or-ed; PRIVATE is the leaf's own C-bit.
    """

    gva: int
    gpa: int
    nbytes: int
    level: int
    entry: int
    flags: int


class Run(NamedTuple):
    """Mapped memory without a hole and of equal rights, as long as can be; ``flags``: those told apart, no others.

    In long mode a run never crosses from one canonical half to the other (in text it does, as QEMU's).
    """

    gva: int
    nbytes: int
    flags: int


@dataclass(frozen=True)
class ListLimits:
    """How much memory a listing may take.

    cache_pages: table pages kept (64 to 2**20). A table that is led to again after so many others is fetched again.
    summaries: tables remembered, about (1024 at least), 16 to 40 bytes each; beyond them a shared subtree may be
    walked again, and what is counted as distinct may not be. unreadable: unreadable tables that are listed; all
    are counted.
    """

    cache_pages: int = 8192
    summaries: int = 1 << 21
    unreadable: int = 1024


@dataclass
class ListReport:
    """What a listing has met. Complete when the iterator ends; a listing that was cut tells of what it had walked.

    tables: distinct table pages fetched; refetched: fetches beyond that. tables_by_level: distinct tables walked (one
    page may be a table of several levels). leaves: pages listed, or part of a run. reserved: entries with reserved
    bits, which map nothing; those of a table are counted once. limits_hit: fields of ListLimits that were too small.
    """

    tables: int = 0
    refetched: int = 0
    tables_by_level: dict[int, int] = field(default_factory=dict)
    leaves: int = 0
    reserved: int = 0
    unreadable: list[UnreadableTable] = field(default_factory=list)
    unreadable_count: int = 0
    limits_hit: tuple[str, ...] = ()


class Listing:
    """An address space to be listed. Each iterator starts anew, and fetches anew; ``report`` is the last one's.

    ``ranges``: half-open, guest-virtual, in any order; () is everything. A leaf that sticks out of a range is listed
    whole, a run is cut. With paging off nothing is listed. ValueError for a range that is none.
    """

    def __init__(
        self,
        reader: TableReader,
        form: PagingForm,
        *,
        ranges: Sequence[tuple[int, int]] = (),
        limits: ListLimits | None = None,
    ) -> None:
        self.report = ListReport()
        self._reader = reader
        self._form = form
        self._ranges = tuple(ranges) or ((0, 1 << 64),)
        self._limits = limits or ListLimits()

    def leaves(self) -> Iterator[Leaf]:
        """Every present leaf without reserved bits, ascending by table index."""
        for packed in self._records(Kind.LEAVES):
            yield from map(Leaf._make, _LEAF.iter_unpack(packed))

    def runs(self, tell_apart: int = TELL_APART) -> Iterator[Run]:
        """Runs of leaves that agree in the flags (EntryFlag) of ``tell_apart``; LEVEL1 to LEVEL3 tell page sizes."""
        for packed in self._records(Kind.RUNS, tell_apart):
            yield from map(Run._make, _RUN.iter_unpack(packed))

    def leaves_text(self) -> Iterator[bytes]:
        """Whole lines of QEMU's ``info tlb``, at most 64 KiB at a time."""
        return self._records(Kind.LEAVES_TEXT)

    def runs_text(self) -> Iterator[bytes]:
        """Whole lines of QEMU's ``info mem``, at most 64 KiB at a time."""
        return self._records(Kind.RUNS_TEXT)

    def _records(self, kind: Kind, tell_apart: int = 0) -> Iterator[bytes]:
        self.report = report = ListReport()
        if not self._form.levels:
            return
        limits = self._limits
        with Engine(
            kind,
            self._form,
            self._ranges,
            tell_apart=int(tell_apart),
            cache_pages=limits.cache_pages,
            summaries=limits.summaries,
            unreadable=limits.unreadable,
        ) as engine:
            state = State.AGAIN
            try:
                while state != State.DONE:
                    if state == State.TABLES:
                        engine.supply(self._reader.read_tables(engine.wanted(), keep=False))
                    state, packed = engine.step()
                    if packed:
                        yield packed
            finally:
                _fill(report, engine)


def _fill(report: ListReport, engine: Engine) -> None:
    totals = engine.totals()
    report.tables, report.refetched = totals.fetched, totals.refetched
    report.tables_by_level = {level: count for level, count in enumerate(totals.tables) if count}
    report.leaves, report.reserved = totals.leaves, totals.reserved
    report.unreadable, report.unreadable_count = engine.unreadable(), totals.unreadable
    hit = {
        "cache_pages": totals.refetched > 0,
        "summaries": totals.summaries_forgotten,
        "unreadable": totals.unreadable > len(report.unreadable),
    }
    report.limits_hit = tuple(name for name, is_hit in hit.items() if is_hit)
