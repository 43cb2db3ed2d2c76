"""A bitmap of pages: which are there, and how many come before one."""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator
from typing import Final

_BLOCK_NBYTES: Final = 512
_RUNS: Final = re.compile(rb"\xff+|\x00+|[^\x00\xff]")


class PageBitmap:
    """A bit a page, that of the lowest page frame number in the lowest bit of the first byte."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._before = array("Q")  # set bits before each block
        count = 0
        for at in range(0, len(data), _BLOCK_NBYTES):
            self._before.append(count)
            count += _bits(data[at : at + _BLOCK_NBYTES])
        self.count = count

    def __contains__(self, pfn: int) -> bool:
        return 0 <= pfn < 8 * len(self._data) and bool(self._data[pfn >> 3] >> (pfn & 7) & 1)

    def rank(self, pfn: int) -> int:
        """How many pages below ``pfn`` are set; ``pfn`` lies in the bitmap, or right behind its end."""
        byte = pfn >> 3
        if byte >= len(self._data):
            return self.count
        block = byte // _BLOCK_NBYTES
        low = self._data[byte] & (1 << (pfn & 7)) - 1
        return self._before[block] + _bits(self._data[block * _BLOCK_NBYTES : byte]) + low.bit_count()

    def runs(self) -> Iterator[tuple[int, int]]:
        """Half-open ranges of set pages, ascending; ranges may touch."""
        for found in _RUNS.finditer(self._data):
            first = 8 * found.start()
            byte = self._data[found.start()]
            if byte == 0xFF:
                yield first, 8 * found.end()
            elif byte:
                yield from ((first + bit, first + bit + 1) for bit in range(8) if byte >> bit & 1)


def _bits(data: memoryview) -> int:
    return int.from_bytes(data, "little").bit_count()
