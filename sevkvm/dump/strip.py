"""Guest memory without the C-bit in page tables, and the note that says so."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from sevkvm.abi import x86

if TYPE_CHECKING:
    from array import array

    from sevkvm.dump.reader import Memory

PAGE: Final = x86.PAGE_NBYTES
_PRESENT: Final = int.from_bytes(x86.PTE_P.to_bytes(8, "little") * x86.TABLE_ENTRIES, "little")


class StrippedMemory:
    """Reads like ``memory``, but the present entries of the pages at ``table_gpas`` (ascending) lack the C-bit.

    An entry that is not present means nothing to the processor: where it would have the C-bit, a page that was
    swapped out has a part of its place on disk.
    """

    def __init__(self, memory: Memory, table_gpas: array[int], cbit_pos: int) -> None:
        self._memory = memory
        self._table_gpas = table_gpas
        self._cbit_pos = cbit_pos

    @property
    def chunk_nbytes(self) -> int:
        """As the memory underneath."""
        return self._memory.chunk_nbytes

    def readinto(self, gpa: int, private: bool, buffer: memoryview, ahead: int = 0) -> int:
        """Fill ``buffer``; the short-read rule."""
        got = self._memory.readinto(gpa, private, buffer, ahead)
        index = bisect_left(self._table_gpas, gpa & ~x86.PAGE_MASK)
        while index < len(self._table_gpas) and self._table_gpas[index] < gpa + got:
            table = self._table_gpas[index]
            index += 1
            start, end = max(table, gpa), min(table + PAGE, gpa + got)
            if end - start == PAGE:
                page: bytes | memoryview | None = buffer[start - gpa : end - gpa]
            else:  # whether an entry is present, a part of it may not tell
                (page,) = self._memory.read_tables([table])
            if page is not None:
                buffer[start - gpa : end - gpa] = strip(page, self._cbit_pos)[start - table : end - table]
        return got

    def read(self, gpa: int, nbytes: int, private: bool = True) -> bytes:
        """As it is in the guest: whoever follows its data needs the C-bit."""
        return self._memory.read(gpa, nbytes, private)

    def read_tables(self, gpas: Sequence[int], *, keep: bool = True) -> Sequence[bytes | None]:
        """As they are in the guest: whoever walks needs the C-bit."""
        return self._memory.read_tables(gpas, keep=keep)


def strip(table: bytes | memoryview, cbit_pos: int) -> bytes:
    """A table page with the C-bit taken out of its present entries."""
    entries = int.from_bytes(table, "little")
    # all 512 entries at once: the present bits, moved to where the C-bits are
    return (entries & ~((entries & _PRESENT) << cbit_pos)).to_bytes(PAGE, "little")


def with_sme_mask(vmcoreinfo: bytes, mask: int) -> bytes:
    """The text of a VMCOREINFO note with that ``NUMBER(sme_mask)``, decimal as kernels write it."""
    line = b"NUMBER(sme_mask)=%d\n" % mask
    text, found = re.subn(rb"^NUMBER\(sme_mask\)=.*\n", line, vmcoreinfo, flags=re.MULTILINE)
    return text if found else text + line
