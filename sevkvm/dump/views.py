"""All memory a second time, at its virtual addresses: what ``dump --virtual`` shows of a guest's address spaces."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple

from sevkvm import errors
from sevkvm.dump.plan import Placed
from sevkvm.linux.tables import check
from sevkvm.paging.listing import Listing

if TYPE_CHECKING:
    from sevkvm.dump.kernel import KernelFacts
    from sevkvm.dump.reader import DumpSource
    from sevkvm.paging.form import PagingForm

MAX_LEAVES: Final = 1 << 24  # of all address spaces: 64 GiB of 4 KiB pages, some 15 s
MAX_VIEWS: Final = 1 << 16  # more do not fit into the headers of a file
_HALF: Final = 1 << 63


class View(NamedTuple):
    """``nbytes`` at ``gva`` are those at ``gpa``."""

    gva: int
    gpa: int
    nbytes: int


def views(guest: DumpSource, kernel: KernelFacts) -> list[View]:
    """What the vCPUs' page tables map, ascending by gva, not overlapping.

    Where address spaces differ, as those of processes do, the first vCPU's counts; the kernel's half is that of its
    own tables where they are known, since a vCPU in user mode may be on tables that lack it. Raises what
    ``DumpSource.forms`` raises, and UsageError for more than a file can show.
    """
    budget = _Budget()
    found: list[View] = []
    forms = list(dict.fromkeys(guest.forms()))
    own = _kernel_form(guest, kernel)
    if own is not None:
        found = _views(Listing(guest.memory, own), budget)
    for form in forms:
        # the kernel's half is the same in all, and may be the larger one
        ranges = ((0, _HALF),) if own is not None and form.mode.long else ()
        found = _united(found, _views(Listing(guest.memory, form, ranges=ranges), budget))
    if not found:
        raise errors.UsageError(
            "no vCPU uses page tables: there are no virtual addresses", help="omit --virtual"
        )
    return found


def shown(segments: Sequence[Placed], found: Iterable[View]) -> Iterator[Placed]:
    """The views cut to segments (ascending by gpa) of the file, sharing their bytes; ``address`` is the gva."""
    starts = [segment.piece.gpa for segment in segments]
    for gva, gpa, nbytes in found:
        index = max(bisect_right(starts, gpa) - 1, 0)
        while index < len(segments) and starts[index] < gpa + nbytes:
            piece, offset = segments[index].piece, segments[index].offset
            start, end = max(gpa, piece.gpa), min(gpa + nbytes, piece.gpa + piece.nbytes)
            if start < end:
                skip = start - piece.gpa
                part = replace(
                    piece, address=gva + start - gpa, gpa=start, hva=piece.hva + skip, nbytes=end - start
                )
                yield Placed(part, offset + skip)
            index += 1


class _Budget:
    """Hostile tables map more than can be listed: one page of them 512**4 times."""

    def __init__(self) -> None:
        self._leaves = 0

    def check(self, leaves: int, count: int) -> None:
        self._leaves += leaves
        if self._leaves > MAX_LEAVES or count > MAX_VIEWS:
            raise errors.UsageError(
                "the guest's page tables map more ranges than an ELF file's program headers can describe",
                help="name the virtual addresses that matter: --gva START:END",
            )


def _views(listing: Listing, budget: _Budget) -> list[View]:
    """Of one address space; pages that continue each other in both addresses are one view."""
    found: list[View] = []
    gva = gpa = nbytes = leaves = 0
    for leaf in listing.leaves():
        if leaf.gva == gva + nbytes and leaf.gpa == gpa + nbytes:
            nbytes += leaf.nbytes
        else:
            if nbytes:
                found.append(View(gva, gpa, nbytes))
            gva, gpa, nbytes = leaf.gva, leaf.gpa, leaf.nbytes
        leaves += 1
        if not leaves % 4096:
            budget.check(4096, len(found))
    if nbytes:
        found.append(View(gva, gpa, nbytes))
    budget.check(leaves % 4096, len(found))
    return found


def _united(first: Sequence[View], second: Sequence[View]) -> list[View]:
    """Both, ascending; where they overlap, the first counts."""
    found: list[View] = []
    pending = iter(first)
    mine = next(pending, None)
    for gva, gpa, nbytes in second:
        at, end = gva, gva + nbytes
        while mine is not None and mine.gva < end:
            if at < mine.gva:
                found.append(View(at, gpa + at - gva, mine.gva - at))
            at = max(at, mine.gva + mine.nbytes)
            if at > end:
                break
            found.append(mine)
            mine = next(pending, None)
        if at < end:
            found.append(View(at, gpa + at - gva, end - at))
    if mine is not None:
        found.append(mine)
    found += pending
    return found


def _kernel_form(guest: DumpSource, kernel: KernelFacts) -> PagingForm | None:
    if kernel.info is None:
        return None
    try:
        return check(guest.memory, kernel.info, guest.sev.cbit_pos if guest.sev.encrypted else None)
    except errors.BadGuestData:
        return None  # an old kernel does not say where its tables are
