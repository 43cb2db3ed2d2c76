"""Where guest-physical bytes live, and the one rule for short reads. Pure: no I/O here.

The short-read rule: ``readinto`` returns how many bytes it delivered from the start of the request, up to the
first one it could not; it raises only when nothing can ever be read again (the VMM is gone, the firmware refuses).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

from sevkvm import errors


class Slot(NamedTuple):
    """One KVM memory slot: ``nbytes`` of guest memory at ``gpa``, kept by the VMM at ``hva``."""

    gpa: int
    nbytes: int
    hva: int
    name: str = ""
    readonly: bool = False

    @property
    def end(self) -> int:
        """First gpa past the slot."""
        return self.gpa + self.nbytes


class Extent(NamedTuple):
    """A piece of guest-physical space inside one slot."""

    gpa: int
    nbytes: int
    hva: int


class MemorySource(Protocol):
    """Bytes of guest-physical memory, read in one particular way."""

    def readinto(self, gpa: int, hva: int, buffer: memoryview) -> int:
        """Fill ``buffer`` from guest memory at ``gpa``, which the VMM keeps at ``hva``; the short-read rule."""
        ...


class SlotMap:
    """The slots of a VM, sorted by gpa. Overlaps are refused: they would make reads ambiguous."""

    def __init__(self, slots: Iterable[Slot]) -> None:
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
        return None if slot is None else slot.hva + (gpa - slot.gpa)

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
