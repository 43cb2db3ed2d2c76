"""Which parts of a VMM's memory have anything behind them: what nobody ever touched is told without touching it.

Reading a page that is not there would make it (in a memfd, for good), so that is never done to find out.
Source: Linux Documentation/admin-guide/mm/pagemap.rst (v6.18); lseek(2), SEEK_HOLE; Documentation/filesystems/proc.rst,
map_files.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from sevkvm.abi.x86 import PAGE_NBYTES
from sevkvm.host import procfs
from sevkvm.host.procfs import PROC, Mapping

_ENTRY_NBYTES: Final = 8
_CHUNK_ENTRIES: Final = 1 << 16
_PRESENT, _SWAPPED = 1 << 63 - 56, 1 << 62 - 56  # in an entry's last byte
# what a page is by that byte: b"1" there, b"s" not to be looked at, b"0" not there
_STATES: Final = bytes(
    ord("1") if byte & _PRESENT else ord("s") if byte & _SWAPPED else ord("0") for byte in range(256)
)

Backed = tuple[int, int, bool | None]


class Backing:
    """``/proc/PID/pagemap`` of a VMM, and the holes of the files that it maps as guest memory."""

    def __init__(self, pid: int, proc: Path = PROC) -> None:
        self._pid = pid
        self._proc = proc

    def ranges(self, hva: int, nbytes: int) -> Iterator[Backed]:
        """``(hva, nbytes, state)`` of the page-aligned range, in order and without gaps.

        True: there are pages, and reading them changes nothing. False: nothing was ever written there. None: cannot
        be told without bringing pages in. Raises VmNotFound or AttachError.
        """
        end = hva + nbytes
        mappings = [
            each for each in procfs.maps(self._pid, self._proc) if each.start < end and each.end > hva
        ]
        for mapping in mappings:
            if mapping.start > hva:
                yield hva, mapping.start - hva, None
            hva, stop = max(hva, mapping.start), min(end, mapping.end)
            yield from self._mapping(mapping, hva, stop)
            hva = stop
        if hva < end:
            yield hva, end - hva, None

    def _mapping(self, mapping: Mapping, hva: int, end: int) -> Iterator[Backed]:
        if not mapping.inode:
            yield from self._pages(hva, end, absent=False)
        elif "s" not in mapping.perms:
            yield from self._pages(hva, end, absent=None)  # the file may have what was not copied yet
        else:
            delta = mapping.start - mapping.offset
            for start, stop, hole in self._file(mapping, hva - delta, end - delta):
                if hole:
                    yield start + delta, stop - start, False
                else:
                    yield from self._pages(start + delta, stop + delta, absent=None)

    def _pages(self, hva: int, end: int, *, absent: bool | None) -> Iterator[Backed]:
        """By the process's own page tables; ``absent`` is what a page means that they do not have."""
        meaning = {ord("1"): True, ord("s"): None, ord("0"): absent}
        try:
            fd = os.open(self._proc / str(self._pid) / "pagemap", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            yield hva, end - hva, None
            return
        try:
            while hva < end:
                count = min((end - hva) // PAGE_NBYTES, _CHUNK_ENTRIES)
                entries = os.pread(fd, count * _ENTRY_NBYTES, hva // PAGE_NBYTES * _ENTRY_NBYTES)
                states = entries[_ENTRY_NBYTES - 1 :: _ENTRY_NBYTES].translate(_STATES)
                if not states:
                    yield hva, end - hva, None
                    return
                for state, npages in _runs(states):
                    yield hva, npages * PAGE_NBYTES, meaning[state]
                    hva += npages * PAGE_NBYTES
        finally:
            os.close(fd)

    def _file(self, mapping: Mapping, offset: int, end: int) -> Iterator[tuple[int, int, bool]]:
        """``(offset, end, is a hole)`` of the mapped file; all of it is no hole where it cannot be opened.

        A mapping's own link also opens files without a name. It needs CAP_CHECKPOINT_RESTORE.
        """
        link = self._proc / str(self._pid) / "map_files" / f"{mapping.start:x}-{mapping.end:x}"
        try:
            # opening a device could do something to it
            regular = stat.S_ISREG(link.stat().st_mode)
            fd = os.open(link, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK) if regular else -1
        except OSError:
            fd = -1
        if fd < 0:
            yield offset, end, False
            return
        try:
            while offset < end:
                data, hole = _next_data(fd, offset, end)
                if data > offset:
                    yield offset, data, True
                if hole > data:
                    yield data, hole, False
                offset = hole
        finally:
            os.close(fd)


def _next_data(fd: int, offset: int, end: int) -> tuple[int, int]:
    """Where the file's data goes on from ``offset``, and where the next hole is; both ``end`` at most."""
    data = hole = end
    with suppress(OSError):  # ENXIO: no data from here on
        data = min(os.lseek(fd, offset, os.SEEK_DATA), end)
    with suppress(OSError):
        if data < end:
            # a hole that was made since then is taken for data: this must come to an end
            hole = min(max(os.lseek(fd, data, os.SEEK_HOLE), data + PAGE_NBYTES), end)
    return data, hole


def _runs(states: bytes) -> Iterator[tuple[int, int]]:
    """``(byte, how many)``."""
    for match in re.finditer(rb"0+|1+|s+", states):
        yield states[match.start()], match.end() - match.start()
