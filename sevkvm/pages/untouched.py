"""Memory that a guest never wrote, told from the host's side without decrypting.

A page that the VMM's memory lacks was never written. One that is there is read as the host sees it: whatever an
encrypted guest writes privately arrives as ciphertext, which is zero nowhere (one 16-byte block in 2**128 would be), so
a page of zeros was not written privately since the host's kernel gave it, zeroed, to the VMM. KVM pins, and so brings
in, all memory of an encrypted guest (KVM_MEMORY_ENCRYPT_REG_REGION): there it is always the second that tells.
The zeros of a plain guest may be its own; zeros that a guest shares are its own word, and are not asked about.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from sevkvm.abi.x86 import PAGE_MASK, PAGE_NBYTES
from sevkvm.pages.pagemap import PageKind

if TYPE_CHECKING:
    from sevkvm.guestparts import Backing
    from sevkvm.memory.source import PhysicalMemory, SlotMap
    from sevkvm.pages.pagemap import PageMap

ASKED: Final = frozenset({PageKind.PRIVATE, PageKind.PLAIN, PageKind.UNMAPPED})
_CHUNK_NBYTES: Final = 1 << 20
_ZEROS: Final = bytes(_CHUNK_NBYTES)
_ZERO_PAGE: Final = bytes(PAGE_NBYTES)

Progress = Callable[[int, int], None]


class Untouched:
    """Ascending ``(gpa, end)`` of untouched memory; compact, since there may be millions."""

    def __init__(self) -> None:
        self._starts = array("Q")
        self._ends = array("Q")

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self._starts, self._ends, strict=True)

    def add(self, gpa: int, end: int) -> None:
        """The next range, joined to the last one if it touches."""
        if self._ends and self._ends[-1] == gpa:
            self._ends[-1] = end
        else:
            self._starts.append(gpa)
            self._ends.append(end)


def untouched(
    memory: PhysicalMemory,
    backing: Backing,
    slots: SlotMap,
    pages: PageMap,
    progress: Progress = lambda done, total: None,
) -> Untouched:
    """Look at the RAM that ``pages`` takes for private, plain or unmapped. Reads all of it that is there.

    ``progress`` is told (bytes done, bytes in all). What cannot be read is not untouched.
    """
    found = Untouched()
    ram = [slot for slot in slots if not slot.readonly]
    before, total = 0, sum(slot.nbytes for slot in ram)
    for slot in ram:
        to_gpa = slot.gpa - slot.hva
        for hva, nbytes, state in backing.ranges(slot.hva, slot.nbytes):
            start, end = hva + to_gpa, hva + to_gpa + nbytes
            for gpa, stop in _asked(pages, start, end) if state is not None else ():
                if not state:
                    found.add(gpa, stop)
                    continue
                for at in range(gpa, stop, _CHUNK_NBYTES):
                    _look(memory, at, min(_CHUNK_NBYTES, stop - at), found)
                    progress(before + at - slot.gpa, total)
            progress(before + end - slot.gpa, total)
        before += slot.nbytes
    return found


def _asked(pages: PageMap, start: int, end: int) -> Iterator[tuple[int, int]]:
    return ((gpa, stop) for gpa, stop, kind, _ in pages.stretches(start, end) if kind in ASKED)


def _look(memory: PhysicalMemory, gpa: int, nbytes: int, found: Untouched) -> None:
    """Add the pages of zeros in one chunk, as the host sees it."""
    buffer = bytearray(nbytes)
    got = memory.readinto(gpa, False, memoryview(buffer))
    if got == _CHUNK_NBYTES and buffer == _ZEROS:
        found.add(gpa, gpa + got)
        return
    for at in range(0, got & ~PAGE_MASK, PAGE_NBYTES):
        if buffer[at : at + PAGE_NBYTES] == _ZERO_PAGE:
            found.add(gpa + at, gpa + at + PAGE_NBYTES)
