"""FileMemory: the memory of a guest that is a file. What the dump does not hold cannot be read; it is never zero."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final, NoReturn

from sevkvm import errors
from sevkvm.abi.x86 import PAGE_MASK, PAGE_NBYTES
from sevkvm.memory.source import Slot, SlotMap

if TYPE_CHECKING:
    from sevkvm.dumpfile import Store
    from sevkvm.memory.source import Span
    from sevkvm.memory.write import WritePlan


class FileMemory:
    """A PhysicalMemory over a dump. ``private`` means nothing: each page was read the right way when it was dumped.

    Nothing is remembered here: the file is mapped, and a format that unpacks pages remembers them itself.
    """

    chunk_nbytes: Final = 512 << 10
    encrypted: Final = False

    def __init__(self, store: Store) -> None:
        self.slots = file_slots(store.ranges)
        self.reason = ""
        self._store = store
        self._bytes_copied = 0

    def counts(self) -> dict[str, int]:
        """All counts by name, for ``--stats``."""
        return {"firmware_commands": 0, "bytes_copied": self._bytes_copied}

    def invalidate(self) -> None:
        """Nothing to forget: a dump stands still."""

    def settle(self) -> None:
        """Nothing was begun ahead."""

    def readinto(self, gpa: int, private: bool, buffer: memoryview, ahead: int = 0) -> int:
        """Fill ``buffer``; the short-read rule."""
        done = self._store.readinto(gpa, buffer)
        if done < len(buffer):
            self.reason = self._store.why_missing(gpa + done)
        self._bytes_copied += done
        return done

    def peek(self, gpa: int, buffer: memoryview) -> int:
        """As readinto: there is no cache."""
        return self.readinto(gpa, True, buffer)

    def read(self, gpa: int, nbytes: int, private: bool = True) -> bytes:
        """Exactly nbytes, or MemoryFault naming the first gpa that the dump does not hold."""
        buffer = bytearray(nbytes)
        done = self.readinto(gpa, private, memoryview(buffer))
        if done < nbytes:
            raise errors.MemoryFault("gpa", gpa + done, reason=self.reason)
        return bytes(buffer)

    def read_tables(self, gpas: Sequence[int], *, keep: bool = True) -> list[bytes | None]:
        """Whole page-table pages, as the dump has them; None where it does not hold all of one."""
        pages: list[bytes | None] = []
        for gpa in gpas:
            page = bytearray(PAGE_NBYTES)
            whole = self.readinto(gpa, True, memoryview(page)) == PAGE_NBYTES
            pages.append(bytes(page) if whole else None)
        return pages

    def plan_write(self, spans: Iterable[Span]) -> NoReturn:
        """UsageError: nobody writes to a dump."""
        raise errors.UsageError("a dump is not written to", help="evidence stays as it is; work on a copy")

    def carry_out(self, plan: WritePlan) -> NoReturn:
        """UsageError; there is no plan for a dump."""
        self.plan_write(())


def file_slots(ranges: Iterable[tuple[int, int]]) -> SlotMap:
    """The guest's RAM by a dump's ranges, rounded out to pages: what a page then lacks is a short read.

    No VMM keeps it: ``hva`` is the gpa, and means nothing.
    """
    slots: list[Slot] = []
    for gpa, nbytes in ranges:
        start, end = gpa & ~PAGE_MASK, (gpa + nbytes + PAGE_MASK) & ~PAGE_MASK
        if slots and start < slots[-1].end:
            start = slots[-1].end
        if start < end:
            slots.append(Slot(start, end - start, start))
    return SlotMap(slots, in_vmm=False)
