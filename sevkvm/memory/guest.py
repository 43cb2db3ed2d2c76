"""GuestMemory: guest-physical bytes from the right source, each page decrypted at most once.

Small reads and page tables go through a page cache; bulk reads (dumps) use what is cached and do not fill it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final

from sevkvm import errors
from sevkvm.abi.x86 import PAGE_MASK, PAGE_NBYTES

if TYPE_CHECKING:
    from sevkvm.memory.hva import HvaSource
    from sevkvm.memory.sevdbg import SevDbgSource
    from sevkvm.memory.source import Extent, MemorySource, SlotMap, Span
    from sevkvm.memory.write import MemoryWriter, WritePlan

CACHE_PAGES: Final = 32_768  # 128 MiB at most
_BULK_NBYTES: Final = 64 * PAGE_NBYTES

_Page = tuple[int, bool]


@dataclass
class MemoryStats:
    """Counts since attach; ``firmware_commands`` is the sum of the other ``_commands``."""

    table_commands: int = 0
    data_commands: int = 0
    write_commands: int = 0
    cache_hits: int = 0

    @property
    def firmware_commands(self) -> int:
        """Firmware commands in all: one for each page decrypted or encrypted."""
        return self.table_commands + self.data_commands + self.write_commands


class GuestMemory:
    """Reads a ``gpa`` the way the guest maps it: ``private`` (C-bit) through the firmware, else as the VMM holds it.

    Of a guest that is not encrypted, ``private`` means nothing. The cache is right only while the guest stands
    still: call :meth:`invalidate` when it has run.
    """

    def __init__(self, slots: SlotMap, shared: HvaSource, private: SevDbgSource | None) -> None:
        self.slots = slots
        self._shared = shared
        self._private = private
        self._cache: OrderedDict[_Page, bytes] = OrderedDict()
        self.stats = MemoryStats()
        # plain bytes: read and written again while they are in a core's own cache
        self.chunk_nbytes = private.chunk_nbytes if private else 512 << 10

    @property
    def encrypted(self) -> bool:
        """The guest has private pages."""
        return self._private is not None

    @property
    def reason(self) -> str:
        """Why the last short read was short."""
        return (self._private.reason if self._private else "") or "no readable memory of the VMM is there"

    def counts(self) -> dict[str, int]:
        """All counts by name, for ``--stats``."""
        decrypted = self._private.counters if self._private else None
        return {
            "firmware_commands": self.stats.firmware_commands,
            "table_commands": self.stats.table_commands,
            "data_commands": self.stats.data_commands,
            "write_commands": self.stats.write_commands,
            "decrypt_ioctls": decrypted.ioctls if decrypted else 0,
            "bytes_decrypted": decrypted.nbytes if decrypted else 0,
            "bytes_copied": self._shared.bytes_copied,
            "cache_hits": self.stats.cache_hits,
        }

    def invalidate(self) -> None:
        """Forget cached pages, and what was begun ahead: the guest has run, or may have."""
        self._cache.clear()
        self.settle()

    def settle(self) -> None:
        """Wait for what was begun ahead and drop it: the port is free for other requests."""
        if self._private is not None:
            self._private.settle()

    def readinto(self, gpa: int, private: bool, buffer: memoryview, ahead: int = 0) -> int:
        """Fill ``buffer``; the short-read rule. Crosses slots that touch.

        ``ahead``: how many bytes right after it the caller will ask for next; they may be begun meanwhile.
        """
        if not self.encrypted:
            private = False
        done = 0
        for extent in self.slots.extents(gpa, len(buffer)):
            if extent.gpa != gpa + done:
                break
            piece = buffer[done : done + extent.nbytes]
            follows = self._follows(extent, gpa + len(buffer), private, ahead)
            got = self._read_extent(extent.gpa, extent.hva, private, piece, follows)
            done += got
            if got < len(piece):
                break
        return done

    def peek(self, gpa: int, buffer: memoryview) -> int:
        """Fill ``buffer`` as private memory, past the cache both ways: for searches; the short-read rule."""
        done = 0
        commands = self._commands()
        for extent in self.slots.extents(gpa, len(buffer)):
            if extent.gpa != gpa + done:
                break
            piece = buffer[done : done + extent.nbytes]
            got = self._decrypt_or_copy(extent.gpa, extent.hva, True, piece, 0)
            done += got
            if got < len(piece):
                break
        self.stats.data_commands += self._commands() - commands
        return done

    def read(self, gpa: int, nbytes: int, private: bool = True) -> bytes:
        """Exactly nbytes, or MemoryFault naming the first gpa that cannot be read: NotMemory if no slot has it."""
        buffer = bytearray(nbytes)
        done = self.readinto(gpa, private, memoryview(buffer))
        if done < nbytes:
            at = gpa + done
            if self.slots.find(at) is None:
                raise errors.NotMemory(at)
            raise errors.MemoryFault("gpa", at, reason=self.reason)
        return bytes(buffer)

    def read_tables(self, gpas: Sequence[int], *, keep: bool = True) -> list[bytes | None]:
        """Whole page-table pages, always as private; None where there is none to read.

        They are fetched together as far as the source can, and none is fetched twice. Without ``keep``
        those fetched now do not enter the cache: a listing of a large guest must not drive out what it holds.
        """
        private = self.encrypted
        missing = sorted({gpa for gpa in gpas if (gpa, private) not in self._cache})
        self.stats.cache_hits += len(gpas) - len(missing)
        commands = self._commands()
        found = self._decrypt_pages(missing) if private else self._copy_pages(missing)
        self.stats.table_commands += self._commands() - commands
        pages = [found[gpa] if gpa in found else self._cache.get((gpa, private)) for gpa in gpas]
        if keep:
            for gpa, page in found.items():
                self._remember((gpa, private), page)
        return pages

    def plan_write(self, spans: Iterable[Span]) -> WritePlan:
        """Check a write and read what it overwrites, past the cache: see ``MemoryWriter.plan``."""
        with self._counted():
            return self._writer.plan(spans)

    def carry_out(self, plan: WritePlan) -> None:
        """Do what was planned; what the cache held of these pages is forgotten: see ``MemoryWriter.carry_out``."""
        with self._counted():
            self._writer.carry_out(plan)

    @cached_property
    def _writer(self) -> MemoryWriter:
        from sevkvm.memory.write import MemoryWriter  # most commands only read

        return MemoryWriter(self.slots, self._shared, self._private, self._forget)

    def _forget(self, page_gpa: int) -> None:
        for private in (False, True):
            self._cache.pop((page_gpa, private), None)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Count the commands that are sent meanwhile."""
        commands, encryptions = self._commands(), self._encryptions()
        try:
            yield
        finally:
            self.stats.data_commands += self._commands() - commands
            self.stats.write_commands += self._encryptions() - encryptions

    def _decrypt_pages(self, gpas: Sequence[int]) -> dict[int, bytes]:
        """Ascending pages; neighbours with one request, stepping over those that cannot be read."""
        found: dict[int, bytes] = {}
        for extent in (extent for run in _runs(gpas) for extent in self.slots.extents(*run)):
            buffer = memoryview(bytearray(extent.nbytes))
            at = 0
            while at < len(buffer):
                got = (
                    self._decrypt_or_copy(extent.gpa + at, extent.hva + at, True, buffer[at:], 0) & ~PAGE_MASK
                )
                for offset in range(at, at + got, PAGE_NBYTES):
                    found[extent.gpa + offset] = bytes(buffer[offset : offset + PAGE_NBYTES])
                at += got + PAGE_NBYTES
        return found

    def _copy_pages(self, gpas: Sequence[int]) -> dict[int, bytes]:
        """Pages from anywhere in guest memory, with one request for all."""
        hvas = {gpa: hva for gpa in gpas if (hva := self.slots.hva(gpa)) is not None}
        pages = zip(hvas, self._shared.read_pages(list(hvas.values())), strict=True)
        return {gpa: page for gpa, page in pages if page is not None}

    def _source(self, private: bool) -> MemorySource:
        return self._private if private and self._private is not None else self._shared

    def _decrypt_or_copy(self, gpa: int, hva: int, private: bool, buffer: memoryview, ahead: int) -> int:
        if private and self._private is not None:
            return self._private.readinto(gpa, hva, buffer, ahead)
        return self._shared.readinto(gpa, hva, buffer)

    def _commands(self) -> int:
        return self._private.counters.commands if self._private else 0

    def _encryptions(self) -> int:
        return self._private.counters.encryptions if self._private else 0

    def _follows(self, extent: Extent, end: int, private: bool, ahead: int) -> int:
        """How much of ``ahead`` lies in the same slot and is not cached from its start on."""
        slot = self.slots.find(extent.gpa)
        if not ahead or not private or slot is None or extent.gpa + extent.nbytes != end:
            return 0
        ahead = min(ahead, slot.end - end, self.chunk_nbytes)
        cached = self._cached(end, end + ahead, private)
        return max(0, cached[0] - end) if cached else ahead

    def _read_extent(self, gpa: int, hva: int, private: bool, buffer: memoryview, ahead: int) -> int:
        if not private and len(buffer) >= PAGE_NBYTES:
            return self._shared.readinto(gpa, hva, buffer)
        if len(buffer) > _BULK_NBYTES:
            return self._read_bulk(gpa, hva, private, buffer, ahead)
        commands = self._commands()
        done = self._read_cached(gpa, hva, private, buffer)
        self.stats.data_commands += self._commands() - commands
        return done

    def _read_cached(self, gpa: int, hva: int, private: bool, buffer: memoryview) -> int:
        """Page by page through the cache; runs of missing pages are fetched together."""
        first = gpa & ~PAGE_MASK
        last = (gpa + len(buffer) + PAGE_MASK) & ~PAGE_MASK
        wanted = range(first, last, PAGE_NBYTES)
        missing = [page for page in wanted if (page, private) not in self._cache]
        self.stats.cache_hits += len(wanted) - len(missing)
        found: dict[int, bytes] = {}
        for start, nbytes in _runs(missing):
            run = memoryview(bytearray(nbytes))
            got = self._source(private).readinto(start, hva + (start - gpa), run)
            for offset in range(0, got & ~PAGE_MASK, PAGE_NBYTES):
                found[start + offset] = bytes(run[offset : offset + PAGE_NBYTES])
            if got < nbytes:
                break
        done = 0
        for page in wanted:
            data = found[page] if page in found else self._cache.get((page, private))
            if data is None:
                break
            start = max(gpa, page) - page
            piece = data[start : min(PAGE_NBYTES, gpa + len(buffer) - page)]
            buffer[done : done + len(piece)] = piece
            done += len(piece)
        for page, data in found.items():
            self._remember((page, private), data)
        return done

    def _read_bulk(self, gpa: int, hva: int, private: bool, buffer: memoryview, ahead: int) -> int:
        """What is cached from the cache, the rest straight into the buffer."""
        commands = self._commands()
        done = 0
        for start, nbytes, page in self._split_at_cached(gpa, len(buffer), private):
            offset = start - gpa
            if page is not None:
                within = start & PAGE_MASK
                buffer[offset : offset + nbytes] = page[within : within + nbytes]
                self.stats.cache_hits += 1
                got = nbytes
            else:
                last = offset + nbytes == len(buffer)
                got = self._decrypt_or_copy(
                    start, hva + offset, private, buffer[offset : offset + nbytes], ahead if last else 0
                )
            done += got
            if got < nbytes:
                break
        self.stats.data_commands += self._commands() - commands
        return done

    def _split_at_cached(
        self, gpa: int, nbytes: int, private: bool
    ) -> Iterator[tuple[int, int, bytes | None]]:
        """``[gpa, gpa + nbytes)`` as (gpa, nbytes, cached page or None), in order."""
        end, start = gpa + nbytes, gpa
        for at in self._cached(gpa, end, private):
            low, high = max(at, gpa), min(at + PAGE_NBYTES, end)
            if start < low:
                yield start, low - start, None
            yield low, high - low, self._cache[at, private]
            start = high
        if start < end:
            yield start, end - start, None

    def _cached(self, gpa: int, end: int, private: bool) -> list[int]:
        """The cached pages with bytes of ``[gpa, end)``, ascending."""
        wanted = range(gpa & ~PAGE_MASK, end, PAGE_NBYTES)
        if len(self._cache) > len(wanted):
            return [at for at in wanted if (at, private) in self._cache]
        return sorted(at for at, kind in self._cache if kind == private and at in wanted)

    def _remember(self, key: _Page, page: bytes) -> None:
        cache = self._cache
        cache[key] = page
        cache.move_to_end(key)
        while len(cache) > CACHE_PAGES:
            cache.popitem(last=False)


def _runs(gpas: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Sorted page addresses as (start, nbytes) of runs that touch."""
    start = end = -1
    for gpa in gpas:
        if gpa != end:
            if start >= 0:
                yield start, end - start
            start = gpa
        end = gpa + PAGE_NBYTES
    if start >= 0:
        yield start, end - start
