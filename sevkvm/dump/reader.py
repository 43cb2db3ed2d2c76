"""What a dump needs of a guest, and reading that survives pages which cannot be read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

from sevkvm import errors
from sevkvm.abi import x86

if TYPE_CHECKING:
    from sevkvm.linux.vmcoreinfo import VmcoreInfo
    from sevkvm.memory.policy import SevInfo
    from sevkvm.memory.source import SlotMap
    from sevkvm.paging.form import PagingForm
    from sevkvm.vcpu import VcpuState

PAGE = x86.PAGE_NBYTES
MAX_PROBE_STEP = 64 * PAGE  # an unreadable gigabyte costs about 4,100 failing reads, not 262,144

EXCLUDED = "excluded"
"""The kind of a run of a PageMap that is left out on purpose: no loss."""


class Memory(Protocol):
    """Guest-physical reading, under the short-read rule of ``sevkvm.memory.source``."""

    @property
    def chunk_nbytes(self) -> int:
        """How much to ask for at a time for the best throughput."""
        ...

    def readinto(self, gpa: int, private: bool, buffer: memoryview, ahead: int = 0) -> int:
        """Fill ``buffer`` from ``gpa``; short at the first byte that cannot be read. ``ahead`` is asked for next."""
        ...

    def read(self, gpa: int, nbytes: int, private: bool = True) -> bytes:
        """Exactly nbytes, or MemoryFault: to follow the guest's own data."""
        ...

    def read_tables(self, gpas: Sequence[int], *, keep: bool = True) -> Sequence[bytes | None]:
        """Page-table pages."""
        ...


class DumpSource(Protocol):
    """The part of :class:`sevkvm.guest.Guest` that a dump uses."""

    @property
    def memory(self) -> Memory:
        """Its memory."""
        ...

    @property
    def slots(self) -> SlotMap:
        """Where it has memory."""
        ...

    @property
    def sev(self) -> SevInfo:
        """What protects it."""
        ...

    @property
    def was_live(self) -> bool:
        """Is it a dump that was made while its guest ran?"""
        ...

    def registers(self) -> list[VcpuState]:
        """Registers of every vCPU, or RegistersUnavailable."""
        ...

    def held(self) -> AbstractContextManager[None]:
        """Keep its vCPUs from running."""
        ...

    def paging(self) -> PagingForm:
        """How its page tables are read; used by dumps of virtual memory only."""
        ...

    def forms(self) -> Sequence[PagingForm]:
        """The address spaces that its vCPUs run on, or RegistersUnavailable."""
        ...

    def vmcoreinfo(self) -> VmcoreInfo | None:
        """Its kernel's VMCOREINFO note; BadGuestData where several kernels cannot be told apart."""
        ...


class PageMap(Protocol):
    """Which pages are private."""

    def runs(self, start: int, end: int) -> Iterable[tuple[int, int, bool, str]]:
        """Ascending ``(gpa, nbytes, private, kind)`` in ``[start, end)``; what no run covers is skipped."""
        ...


class PageReader:
    """Reads through one reusable buffer; finds the way past pages that cannot be read."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self.buffer = bytearray(max(PAGE, memory.chunk_nbytes))
        self._view = memoryview(self.buffer)

    def read(self, gpa: int, nbytes: int, private: bool, ahead: int = 0) -> int:
        """Read at most one chunk into ``buffer``; return the bytes delivered before the first unreadable one.

        ``ahead``: how many bytes after it will be read next.
        """
        want = min(nbytes, len(self.buffer))
        try:
            return self._memory.readinto(gpa, private, self._view[:want], ahead)
        except errors.MemoryFault:
            return self._read_pagewise(gpa, want, private)

    def next_readable(self, gpa: int, end: int, private: bool) -> tuple[int, bool]:
        """Where reading can go on after the page of ``gpa`` failed, and whether every page before was tried.

        Probes at distances that double up to ``MAX_PROBE_STEP``; once a probe succeeds, the pages after the last
        failing one are tried one by one, so that a run of bad pages ends at its true end. ``end`` if none is left.
        """
        failed = _page(gpa)
        step = PAGE
        every_page_tried = True
        while failed + step < end:
            if self._readable(failed + step, private):
                return self._first_readable(failed + PAGE, failed + step, private), every_page_tried
            every_page_tried &= step == PAGE
            failed += step
            step = min(2 * step, MAX_PROBE_STEP)
        for probe in range(failed + PAGE, end, PAGE):  # less than one step
            if self._readable(probe, private):
                return probe, every_page_tried
        return end, every_page_tried

    def _first_readable(self, gpa: int, known_good: int, private: bool) -> int:
        for probe in range(gpa, known_good, PAGE):
            if self._readable(probe, private):
                return probe
        return known_good

    def _readable(self, gpa: int, private: bool) -> bool:
        try:
            return self._memory.readinto(gpa, private, self._view[:1]) == 1
        except errors.MemoryFault:
            return False

    def _read_pagewise(self, gpa: int, nbytes: int, private: bool) -> int:
        """For a source that raises where it should have read short."""
        done = 0
        while done < nbytes:
            want = min(nbytes - done, PAGE - (gpa + done) % PAGE)
            try:
                got = self._memory.readinto(gpa + done, private, self._view[done : done + want])
            except errors.MemoryFault:
                return done
            done += got
            if got < want:
                return done
        return done


def _page(gpa: int) -> int:
    return gpa & ~x86.PAGE_MASK
