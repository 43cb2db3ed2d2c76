"""Where guest-physical bytes live, and the one rule for short reads. Pure: no I/O here.

The short-read rule: ``readinto`` returns how many bytes it delivered from the start of the request, up to the
first one it could not; it raises only when nothing can ever be read again (the VMM is gone, the firmware refuses).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from sevkvm import errors

if TYPE_CHECKING:
    from sevkvm.memory.write import WritePlan


class Slot(NamedTuple):
    """One KVM memory slot: ``nbytes`` of guest memory at ``gpa``, kept by the VMM at ``hva``.

    ``guessed``: nobody told of it; in the midst of RAM there may be something else.
    """

    gpa: int
    nbytes: int
    hva: int
    name: str = ""
    readonly: bool = False
    guessed: bool = False

    @property
    def end(self) -> int:
        """First gpa past the slot."""
        return self.gpa + self.nbytes


class Extent(NamedTuple):
    """A piece of guest-physical space inside one slot."""

    gpa: int
    nbytes: int
    hva: int


class Span(NamedTuple):
    """Bytes that are to be at ``gpa`` on; ``gva`` is what the user calls that place, or None."""

    gpa: int
    private: bool
    data: bytes
    gva: int | None = None


class MemorySource(Protocol):
    """Bytes of guest-physical memory, read in one particular way."""

    def readinto(self, gpa: int, hva: int, buffer: memoryview) -> int:
        """Fill ``buffer`` from guest memory at ``gpa``, which the VMM keeps at ``hva``; the short-read rule."""
        ...


class PhysicalMemory(Protocol):
    """Guest-physical memory as a Guest hands it out: of a VMM (GuestMemory), or of a dump (FileMemory)."""

    @property
    def slots(self) -> SlotMap:
        """Where there is RAM."""
        ...

    @property
    def chunk_nbytes(self) -> int:
        """How much to ask for at a time for the best throughput."""
        ...

    @property
    def encrypted(self) -> bool:
        """Private pages are decrypted to be read."""
        ...

    @property
    def reason(self) -> str:
        """Why the last short read was short."""
        ...

    def readinto(self, gpa: int, private: bool, buffer: memoryview, ahead: int = 0) -> int:
        """Fill ``buffer``; the short-read rule. ``ahead``: how many bytes right after it will be asked for next."""
        ...

    def peek(self, gpa: int, buffer: memoryview) -> int:
        """Fill ``buffer`` as private memory, past any cache: for searches; the short-read rule."""
        ...

    def read(self, gpa: int, nbytes: int, private: bool = True) -> bytes:
        """Exactly nbytes, or MemoryFault naming the first gpa that cannot be read."""
        ...

    def read_tables(self, gpas: Sequence[int], *, keep: bool = True) -> list[bytes | None]:
        """Whole page-table pages, always as private; None where there is none to read."""
        ...

    def plan_write(self, spans: Iterable[Span]) -> WritePlan:
        """Check a write and read what it overwrites: as ``MemoryWriter.plan``; UsageError for a dump."""
        ...

    def carry_out(self, plan: WritePlan) -> None:
        """Do what was planned: as ``MemoryWriter.carry_out``."""
        ...

    def counts(self) -> dict[str, int]:
        """All counts by name, for ``--stats``."""
        ...

    def invalidate(self) -> None:
        """The guest has run, or may have."""
        ...

    def settle(self) -> None:
        """Nothing begun ahead is left on the way."""
        ...


class SlotMap:
    """The slots of a VM, sorted by gpa. Overlaps are refused: they would make reads ambiguous.

    ``in_vmm``: a VMM keeps the memory; for a dump the slots' ``hva`` means nothing.
    """

    def __init__(self, slots: Iterable[Slot], *, in_vmm: bool = True) -> None:
        self.in_vmm = in_vmm
        self.slots = tuple(sorted(slots))
        for lower, upper in zip(self.slots, self.slots[1:], strict=False):
            if upper.gpa < lower.end:
                raise errors.UsageError(
                    f"memory slots overlap at gpa 0x{upper.gpa:x}",
                    help="each --slot GPA:SIZE:HVA must cover guest memory of its own",
                )
        for slot in self.slots:
            if slot.nbytes <= 0 or (slot.gpa | slot.hva | slot.nbytes) & 0xFFF or slot.end > 1 << 52:
                raise errors.UsageError(
                    f"memory slot 0x{slot.gpa:x}:0x{slot.nbytes:x}:0x{slot.hva:x} is not page-aligned RAM",
                    help="GPA, SIZE and HVA are multiples of 4096 (0x1000); SIZE is not 0",
                )
        self._starts = [slot.gpa for slot in self.slots]

    def __iter__(self) -> Iterator[Slot]:
        return iter(self.slots)

    def __len__(self) -> int:
        return len(self.slots)

    @property
    def nbytes(self) -> int:
        """Guest memory in all slots together."""
        return sum(slot.nbytes for slot in self.slots)

    def find(self, gpa: int) -> Slot | None:
        """The slot that holds ``gpa``, or None (MMIO, hole)."""
        index = bisect_right(self._starts, gpa) - 1
        if index < 0 or gpa >= self.slots[index].end:
            return None
        return self.slots[index]

    def hva(self, gpa: int) -> int | None:
        """Where the VMM keeps ``gpa``, or None."""
        slot = self.find(gpa)
        return None if slot is None or not self.in_vmm else slot.hva + (gpa - slot.gpa)

    def extents(self, gpa: int, nbytes: int) -> Iterator[Extent]:
        """The pieces of ``[gpa, gpa + nbytes)`` that are RAM, in order; what lies between them is not."""
        end = gpa + nbytes
        index = max(bisect_right(self._starts, gpa) - 1, 0)
        for slot in self.slots[index:]:
            if slot.gpa >= end:
                return
            start, stop = max(gpa, slot.gpa), min(end, slot.end)
            if start < stop:
                yield Extent(start, stop - start, slot.hva + (start - slot.gpa))
