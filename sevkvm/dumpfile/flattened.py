"""makedumpfile's flattened format: a file as a sequence of writes, for pipes. QEMU before 8.2 writes kdump so.

Source: makedumpfile's README and IMPLEMENTATION documents (1.7). Its numbers are big-endian.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from heapq import heappop, heappush
from itertools import islice, pairwise
from typing import TYPE_CHECKING, Final

from sevkvm import errors

if TYPE_CHECKING:
    from sevkvm.dumpfile.image import MappedFile

MAGIC: Final = b"makedumpfile\0"
_HEADER_NBYTES: Final = 4096
_HEADER: Final = struct.Struct(">16sqq")
_RECORD: Final = struct.Struct(">qq")
_END: Final = -1
_MOST_RECORDS: Final = 1 << 24


class FlattenedFile:
    """The file that the writes make, where they made it. Of two writes to one place the later counts.

    ``nbytes``: its size. What no write reached is zero, as in a file that was written so; but where the last record is
    missing, and nobody knows what was to be written still, it cannot be taken.
    """

    def __init__(self, image: MappedFile) -> None:
        self.path = image.path
        self._image = image
        _, kind, version = _HEADER.unpack(image.take(0, _HEADER.size, "the flattened header"))
        if (kind, version) != (1, 1):
            raise errors.BadDump(
                self.path, f"a flattened file of type {kind} and version {version}, not 1 and 1"
            )
        self._ended = False
        self._records = _latest(self._writes())
        self._starts = [offset for offset, _, _ in self._records]
        self.nbytes = max((offset + nbytes for offset, nbytes, _ in self._records), default=0)

    def take(self, offset: int, nbytes: int, what: str) -> memoryview:
        """Exactly nbytes at ``offset`` of the file that was flattened; BadDump where some were not written."""
        index = max(bisect_right(self._starts, offset) - 1, 0)
        parts: list[memoryview] = []
        at, end = offset, offset + nbytes
        for start, size, place in islice(self._records, index, None):
            if at >= end or (start > at and not self._ended):
                break
            if start > at:
                parts.append(memoryview(bytes(min(start, end) - at)))
                at = min(start, end)
            if at < min(start + size, end):
                stop = min(start + size, end)
                parts.append(self._image.take(place + at - start, stop - at, what))
                at = stop
        if at < end or nbytes < 0:
            raise errors.BadDump(
                self.path, f"{what} ({nbytes} bytes at offset 0x{offset:x}) is not in the flattened file"
            )
        return parts[0] if len(parts) == 1 else memoryview(b"".join(parts))

    def _writes(self) -> list[tuple[int, int, int]]:
        """``(offset, nbytes, place)`` in the order they were made; ``place`` is where the bytes are."""
        found: list[tuple[int, int, int]] = []
        at = _HEADER_NBYTES
        while at + _RECORD.size <= self._image.nbytes:
            offset, nbytes = _RECORD.unpack(self._image.take(at, _RECORD.size, "a record"))
            if offset == _END and nbytes == _END:
                self._ended = True
                break
            if offset < 0 or nbytes <= 0:
                raise errors.BadDump(
                    self.path, f"the record at file offset 0x{at:x} writes {nbytes} bytes at {offset}"
                )
            if len(found) == _MOST_RECORDS:
                raise errors.BadDump(self.path, f"it has more than {_MOST_RECORDS} records")
            at += _RECORD.size
            held = min(nbytes, self._image.nbytes - at)
            if held:
                found.append((offset, held, at))
            at += nbytes
        return found


def _latest(writes: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """The parts of writes that no later one overwrote, ascending and disjoint."""
    if all(a[0] + a[1] <= b[0] for a, b in pairwise(writes)):
        return writes
    begin: dict[int, list[int]] = {}
    edges = set()
    for index, (offset, nbytes, _) in enumerate(writes):
        begin.setdefault(offset, []).append(index)
        edges |= {offset, offset + nbytes}
    found: list[tuple[int, int, int]] = []
    open_writes: list[int] = []  # a heap: the latest first
    for at, end in pairwise(sorted(edges)):
        for index in begin.get(at, ()):
            heappush(open_writes, -index)
        while open_writes and sum(writes[-open_writes[0]][:2]) <= at:
            heappop(open_writes)
        if open_writes:
            offset, _, place = writes[-open_writes[0]]
            found.append((at, end - at, place + at - offset))
    return found
