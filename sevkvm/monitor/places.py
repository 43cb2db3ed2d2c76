"""What ``x`` and ``xp`` look at: memory, and, where that was asked for, the registers of devices.

Memory may be read ahead, and twice. A register is read once, when its turn to be shown has come, as wide as it is
shown: reading it can change it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sevkvm import errors
from sevkvm.abi.x86 import PAGE_MASK, PAGE_NBYTES, PAGE_SHIFT

if TYPE_CHECKING:
    from collections.abc import Callable

    from sevkvm.guest import Guest

HELD_NBYTES: Final = 1 << 20  # read in one go, while the guest stands still
_END: Final = 1 << 64


class Places:
    """``read`` gives all of (address, nbytes) or raises MemoryFault. ``fault``: why the last answer was short.

    ``accesses``: how often a device was to be read.
    """

    def __init__(self, guest: Guest, read: Callable[[int, int], bytes]) -> None:
        self.accesses = 0
        self.fault: errors.MemoryFault | None = None
        self._guest = guest
        self._read = read
        self._kept: dict[int, tuple[int, bytes | errors.MemoryFault]] = {}  # by page: from where on, and what

    def keep(self, address: int, nbytes: int) -> None:
        """Read what there is of memory now, while the guest is held; no more than HELD_NBYTES, else nothing at all."""
        if nbytes > HELD_NBYTES:
            return
        end = min(address + nbytes, _END)
        while address < end:
            want = min(PAGE_NBYTES - (address & PAGE_MASK), end - address)
            page = address >> PAGE_SHIFT
            try:
                self._kept[page] = address, self._read(address, want)
            except errors.MemoryFault as fault:
                self._kept[page] = address, fault
                if not isinstance(fault, errors.NotMemory) or not self._guest.reads_devices:
                    return
            address += want

    def memory(self, address: int, nbytes: int) -> bytes:
        """A ``Reader``: no request crosses a page."""
        try:
            return self._found(address, nbytes)
        except errors.MemoryFault as fault:
            self.fault = fault
            return b""

    def register(self, address: int, nbytes: int) -> bytes:
        """One access to a device there, after ``memory`` gave nothing; empty where none answers, or nobody may ask."""
        fault = self.fault
        if not self._guest.reads_devices or not isinstance(fault, errors.NotMemory):
            return b""
        if (address & PAGE_MASK) + nbytes > PAGE_NBYTES:
            return b""  # two pages need not lie side by side
        self.accesses += 1
        try:
            return self._guest.read_device(fault.gpa, nbytes)
        except errors.MemoryFault as refused:
            self.fault = refused
            return b""

    def _found(self, address: int, nbytes: int) -> bytes:
        kept = self._kept.get(address >> PAGE_SHIFT)
        if kept is None:
            return self._read(address, nbytes)
        start, found = kept
        if isinstance(found, errors.NotMemory):
            raise errors.NotMemory(found.gpa + address - start, None if found.space == "gpa" else address)
        if isinstance(found, errors.MemoryFault):
            raise found
        return found[address - start : address - start + nbytes]
