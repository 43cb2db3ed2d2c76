"""Which pages to look at: a bounded number, spread over RAM, of which something is known."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from sevkvm.abi.x86 import PAGE_MASK, PAGE_NBYTES
from sevkvm.errors import IoctlError, RegistersUnavailable
from sevkvm.pages.classify import PageKind
from sevkvm.verify.page import Expected

if TYPE_CHECKING:
    from sevkvm.guest import Guest
    from sevkvm.verify.pagemap import Known

_WINDOW_PAGES: Final = 256
_LEGACY_HOLE: Final = (0xA_0000, 0x10_0000)  # a PC's video memory and ROMs: no RAM to the guest
_ZEROS: Final = bytes(PAGE_NBYTES)

Run = tuple[int, int]  # gpa, nbytes


class Candidate(NamedTuple):
    """A page to look at, and what it should be."""

    gpa: int
    what: str
    expected: Expected


def spread(runs: Sequence[Run], count: int) -> list[int]:
    """At most ``count`` pages, evenly spread over all the pages of ``runs``, ascending; all if they are no more."""
    total = sum(nbytes for _, nbytes in runs) // PAGE_NBYTES
    if total <= count:
        return [page for gpa, nbytes in runs for page in range(gpa, gpa + nbytes, PAGE_NBYTES)]
    wanted = [(2 * number + 1) * total // (2 * count) for number in range(count)]
    found: list[int] = []
    before = 0
    for gpa, nbytes in runs:
        npages = nbytes // PAGE_NBYTES
        while len(found) < count and wanted[len(found)] < before + npages:
            found.append(gpa + (wanted[len(found)] - before) * PAGE_NBYTES)
        before += npages
    return found


def runs_of(known: Known, kind: PageKind) -> list[Run]:
    """Where the pages of a kind are."""
    if known.pages is None:
        return []
    return [(run.gpa, run.nbytes) for run in known.pages.runs() if run.kind is kind]


def buffers(guest: Guest, known: Known) -> list[Run]:
    """Shared RAM that the guest may use as such.

    Not the firmware's: a launch encrypts it, a PC's first MiB shows it again, and Linux may map it as it maps device
    registers, shared, all the same.
    """
    firmware = [(slot.gpa, slot.end) for slot in guest.slots if slot.readonly] + [_LEGACY_HOLE]
    runs = [(gpa, gpa + nbytes) for gpa, nbytes in runs_of(known, PageKind.SHARED)]
    for first, last in firmware:
        cut = [((gpa, min(end, first)), (max(gpa, last), end)) for gpa, end in runs]
        runs = [part for parts in cut for part in parts if part[0] < part[1]]
    return [(gpa, end - gpa) for gpa, end in runs]


def written(guest: Guest, runs: Sequence[Run], count: int) -> Iterator[int]:
    """Spread pages, each moved on to the next one within 1 MiB that the host does not see as zeros."""
    taken: set[int] = set()
    for gpa in spread(runs, count):
        end = next(start + nbytes for start, nbytes in runs if start <= gpa < start + nbytes)
        buffer = memoryview(bytearray(min(_WINDOW_PAGES * PAGE_NBYTES, end - gpa)))
        got = guest.memory.readinto(gpa, False, buffer) & ~PAGE_MASK
        for at in range(0, got, PAGE_NBYTES):
            if gpa + at not in taken and buffer[at : at + PAGE_NBYTES] != _ZEROS:
                taken.add(gpa + at)
                yield gpa + at
                break


def private_samples(guest: Guest, known: Known, count: int) -> Iterator[Candidate]:
    """Top tables first, then what registers lead to, other tables, and pages from all over private memory."""
    chosen: set[int] = set()
    for candidate in _known_first(guest, known, count):
        if candidate.gpa not in chosen and len(chosen) < count:
            chosen.add(candidate.gpa)
            yield candidate


def _known_first(guest: Guest, known: Known, count: int) -> Iterator[Candidate]:
    assert known.pages is not None
    roots = {form.root_gpa & ~PAGE_MASK for form in known.forms}
    yield from (
        Candidate(gpa, "top page table", Expected.KNOWN) for gpa in sorted(roots)[: max(count // 4, 1)]
    )
    yield from _from_registers(guest, known)
    tables = known.pages.scan.table_gpas if known.pages.scan else ()
    yield from _tables(tables, max(count // 4, 1))
    for gpa in written(guest, runs_of(known, PageKind.PRIVATE), count):
        yield Candidate(gpa, "private page", Expected.PRIVATE)


def _tables(gpas: Iterable[int], count: int) -> Iterator[Candidate]:
    for gpa in spread([(gpa, PAGE_NBYTES) for gpa in gpas], count):
        yield Candidate(gpa, "page table", Expected.KNOWN)


def _from_registers(guest: Guest, known: Known) -> Iterator[Candidate]:
    """What the first vCPU executes, and its descriptor tables; nothing where registers are unknown."""
    assert known.pages is not None
    try:
        states = guest.registers()[:1]
    except (RegistersUnavailable, IoctlError):
        return
    for state in states:
        sregs = state.sregs
        code = state.regs.rip + (0 if sregs.cs.l else sregs.cs.base)
        for what, gva in (("code", code), ("GDT", sregs.gdt.base), ("IDT", sregs.idt.base)):
            gpa = guest.translate(gva & (1 << 64) - 1, known.forms[0]).gpa
            if gpa is not None and known.pages.kind(gpa) is PageKind.PRIVATE:
                yield Candidate(gpa & ~PAGE_MASK, f"vCPU {state.index}'s {what}", Expected.PRIVATE)
