"""ProgramMemory: what drgn reads, a page at a time, out of pages that are remembered for as long as they are true.

drgn takes addresses from page-table entries with the C-bit in them: an address with the bit is private, one without
is shared. Only the top table is named without it, and what a table names by an entry that lacks it: a processor takes
every page table as private, and so do we.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from sevkvm.abi.x86 import PAGE_MASK, PAGE_NBYTES, PAGE_SHIFT
from sevkvm.memory.guest import CACHE_PAGES
from sevkvm.native import EntryFlag
from sevkvm.paging.decoder import decoder_for

if TYPE_CHECKING:
    from sevkvm.memory.source import PhysicalMemory
    from sevkvm.paging.form import PagingForm

_BULK_NBYTES: Final = 16 * PAGE_NBYTES
_ENDS: Final = int(EntryFlag.LEAF) | int(EntryFlag.RESERVED)

Fault = Callable[[str, int], Exception]


class ProgramMemory:
    """Serves reads of guest-physical memory, addresses with the C-bit or without.

    ``form``: the kernel's own tables. ``fault`` makes the exception for (message, address) that cannot be read.
    ``max_age``: seconds for which a page of a guest that runs may be remembered; all are forgotten together.
    """

    def __init__(self, memory: PhysicalMemory, form: PagingForm, fault: Fault, max_age: float) -> None:
        self._memory = memory
        self._fault = fault
        self._max_age = max_age
        self._cbit_mask = form.cbit_mask
        self._decoder = decoder_for(form)
        self._top = {form.root_gpa: form.levels}
        self._tables = dict(self._top)  # levels by gpa, of those that pages we remember have named
        self._pages: dict[int, bytes] = {}  # by address >> 12, the C-bit included
        self._still = False
        self._expiry = math.inf
        self._busy = False
        self._later: Callable[[], None] | None = None

    def read(self, address: int, nbytes: int, offset: int, physical: bool) -> bytes:
        """A memory segment's ``read_fn``; raises ``fault``, or SevKvmError when nothing can be read any more."""
        if self._expiry < time.monotonic():
            self.forget()
        page = self._pages.get(address >> PAGE_SHIFT)
        if page is not None:
            start = address & PAGE_MASK
            data = page[start : start + nbytes]
            if len(data) == nbytes:
                return data
        with self.working():
            # what is larger is a search, or will be kept by whoever asks
            return self._gather(address, nbytes) if nbytes <= _BULK_NBYTES else self._exactly(address, nbytes)

    # ---- standing still

    @property
    def still(self) -> bool:
        """The guest stands still: pages are remembered without a limit of time."""
        return self._still

    @still.setter
    def still(self, still: bool) -> None:
        self._still = still
        self.forget()

    def forget(self) -> None:
        """What was remembered is not true any more."""
        self._pages.clear()
        self._tables = dict(self._top)
        self._memory.invalidate()
        self._expiry = math.inf

    @contextmanager
    def working(self) -> Iterator[None]:
        """Something is under way that must not be cut in two by what ``soon`` is told."""
        if self._busy:
            yield
            return
        self._busy = True
        try:
            yield
        finally:
            self._busy = False
            later, self._later = self._later, None
            if later is not None:
                later()

    def soon(self, call: Callable[[], None]) -> None:
        """Call it now, or as soon as what is under way is done: for signal handlers."""
        if self._busy:
            self._later = call
        else:
            call()

    # ---- reading

    def _gather(self, address: int, nbytes: int) -> bytes:
        """Through the pages that are remembered."""
        parts: list[bytes] = []
        end = address + nbytes
        while address < end:
            start = address & PAGE_MASK
            count = min(PAGE_NBYTES - start, end - address)
            page = self._pages.get(address >> PAGE_SHIFT) or self._fetch(address & ~PAGE_MASK)
            parts.append(self._exactly(address, count) if page is None else page[start : start + count])
            address += count
        return b"".join(parts)

    def _fetch(self, address: int) -> bytes | None:
        """A whole page, remembered; None where not all of it can be read."""
        gpa = address & ~self._cbit_mask
        level = self._tables.get(gpa)
        private = level is not None or address != gpa
        twin = self._pages.get((gpa | self._cbit_mask) >> PAGE_SHIFT) if level is not None else None
        if twin is None:
            buffer = bytearray(PAGE_NBYTES)
            began = time.monotonic()
            if self._memory.readinto(gpa, private, memoryview(buffer)) < PAGE_NBYTES:
                return None
            twin = bytes(buffer)
            if not self._still and self._expiry == math.inf:
                self._expiry = began + self._max_age
            if len(self._pages) >= CACHE_PAGES:
                self._pages.clear()
            if level is not None:
                self._pages[(gpa | self._cbit_mask) >> PAGE_SHIFT] = twin
                self._note_tables(level, twin)
        self._pages[address >> PAGE_SHIFT] = twin
        return twin

    def _note_tables(self, level: int, table: bytes) -> None:
        """Those that a table names; of the lowest level there are none."""
        if level > 1:
            for run in self._decoder.table(level, table):
                if not run.flags & _ENDS:
                    self._tables.setdefault(run.gpa, level - 1)

    def _exactly(self, address: int, nbytes: int) -> bytes:
        """Past what is remembered: of a page that cannot be read as a whole, or of many."""
        buffer = bytearray(nbytes)
        gpa = address & ~self._cbit_mask
        done = self._memory.readinto(
            gpa, address != gpa or gpa & ~PAGE_MASK in self._tables, memoryview(buffer)
        )
        if done < nbytes:
            at = address + done
            known = self._memory.slots.find(gpa + done) is not None
            raise self._fault(self._memory.reason if known else "not guest RAM", at)
        return bytes(buffer)
