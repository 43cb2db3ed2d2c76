"""A sealed Linux that shares memory with its host, the way a SEV kernel's set_memory_decrypted() does it.

The C-bit is taken off the direct map's entries of a range; a large page that lies in it in part is split first, and the
new table comes out of free memory. Shares no code with what reads it.
"""

from __future__ import annotations

import os
import shutil
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from sevkvm.lab.sealed import SealedLinux
from tests.support.walker import leaves, table_pages

PAGE, LARGE = 4096, 1 << 21
_ADDRESS = (1 << 52) - PAGE
_ENTRY = struct.Struct("<Q")


@dataclass(frozen=True)
class Sharing:
    """``shared`` is half-open, what the kernel shares; what lies in it is ``text`` over and over, in the clear.

    stale_shared: a private page that a second mapping has without the C-bit; stale_private: the other way round.
    new_tables: pages that became tables.
    """

    linux: SealedLinux
    shared: tuple[int, int]
    stale_shared: int
    stale_private: int
    new_tables: tuple[int, ...]
    text: bytes = b"bounced through swiotlb".ljust(64)

    @property
    def root(self) -> int:
        """The first vCPU's top table."""
        return _root(self.linux)

    def truth(self, ram: memoryview) -> dict[int, str]:
        """The kind of each page of RAM that tables tell, by gpa, found by the tests' own walker."""
        ways: dict[int, set[bool]] = {}
        seal = self.linux.seal
        tables = set()
        for root in {_root(self.linux, index) for index in range(len(self.linux.vcpus))}:
            tables |= table_pages(ram, root, seal.levels, seal.cbit_pos)
            for leaf in leaves(ram, root, seal.levels, seal.cbit_pos):
                for gpa in range(leaf.gpa, min(leaf.gpa + leaf.nbytes, len(ram)), PAGE):
                    ways.setdefault(gpa, set()).add(leaf.private)
        kinds = dict.fromkeys(range(0, len(ram), PAGE), "unmapped")
        for gpa, private in ways.items():
            kinds[gpa] = "conflict" if len(private) == 2 else "private" if True in private else "shared"
        return kinds | dict.fromkeys(tables, "table")


def share(linux: SealedLinux, directory: Path) -> Sharing:
    """A copy of it in ``directory`` with 9 MiB shared, from within a large page into another."""
    shutil.copyfile(linux.ram, directory / "ram")
    linux = replace(linux, directory=directory)
    seal, root = linux.seal, _root(linux)
    fd = os.open(linux.ram, os.O_RDWR)
    ram = memoryview(bytearray(os.pread(fd, 1 << 31, 0)))
    deltas: Counter[int] = Counter()
    spare_gva = 0
    ways: Counter[int] = Counter()  # mappings of each 2 MiB
    for leaf in leaves(ram, root, seal.levels, seal.cbit_pos):
        if leaf.gva >> 63 and leaf.gpa < len(ram):  # devices have large areas, too
            ways.update(range(leaf.gpa // LARGE, -(-(leaf.gpa + leaf.nbytes) // LARGE)))
            deltas[leaf.gva - leaf.gpa] += leaf.nbytes
            spare_gva = leaf.gva if leaf.nbytes == PAGE and leaf.gva >> 39 != 0x1FFFFFF else spare_gva
    (base, nbytes), *_ = deltas.most_common(1)
    assert nbytes > len(ram) // 2
    shared = _quiet(ways)
    free = _free_pages(ram, shared)
    tables = _Writer(ram, root, seal.levels, 1 << seal.cbit_pos, free)
    for gpa in range(*shared, PAGE):
        tables.clear_cbit(base + gpa)
    # two mappings that the kernel has forgotten, beside the last small page of another area
    stale_shared, stale_private = shared[0] - 3 * PAGE, shared[0] + 3 * PAGE
    gvas = tables.empty_beside(spare_gva)
    tables.map(next(gvas), stale_shared, private=False)
    tables.map(next(gvas), stale_private, private=True)
    os.pwrite(fd, ram, 0)
    os.close(fd)
    return Sharing(linux, shared, stale_shared, stale_private, tuple(tables.made))


def _root(linux: SealedLinux, index: int = 0) -> int:
    return linux.vcpus[index].sregs.cr3 & _ADDRESS & ~(1 << linux.seal.cbit_pos)


def _quiet(ways: Counter[int]) -> tuple[int, int]:
    """9 MiB and some in five 2 MiB pages that nothing but the direct map has."""
    for first in range(1, len(ways)):
        if all(ways[first + number] == 1 for number in range(5)):
            return first * LARGE + 5 * PAGE, first * LARGE + 8 * PAGE + (9 << 20)
    raise AssertionError("the kernel is everywhere")


def _free_pages(ram: memoryview, taken: tuple[int, int]) -> Iterator[int]:
    """Pages of zeros below 1 MiB from the end, downwards: nothing of the kernel's is lost with them."""
    for gpa in range(len(ram) - (1 << 20) - PAGE, 0, -PAGE):
        if not taken[0] <= gpa < taken[1] and not any(ram[gpa : gpa + PAGE]):
            yield gpa


class _Writer:
    """Changes entries where they are."""

    def __init__(self, ram: memoryview, root: int, levels: int, cbit: int, free: Iterator[int]) -> None:
        self._ram, self._root, self._levels, self._cbit = ram, root, levels, cbit
        self._free = free
        self.made: list[int] = []

    def clear_cbit(self, gva: int) -> None:
        at, level = self._find(gva)
        if level > 1:
            assert level == 2
            self._split(at)
            at, _ = self._find(gva)
        self._write(at, self._read(at) & ~self._cbit)

    def empty_beside(self, gva: int) -> Iterator[int]:
        """Addresses of the same table that are not mapped."""
        table = gva & -LARGE
        for other in range(table, table + LARGE, PAGE):
            if not self._read(self._find(other)[0]) & 1:
                yield other

    def map(self, gva: int, gpa: int, *, private: bool) -> None:
        self._write(self._find(gva)[0], gpa | 0x63 | 1 << 63 | (self._cbit if private else 0))

    def _split(self, at: int) -> None:
        """A large page's entry becomes one that leads to a table of 512 like it."""
        entry = self._read(at)
        table = next(self._free)
        self.made.append(table)
        flags = entry & ~_ADDRESS & ~0x80 | entry & self._cbit
        start = entry & _ADDRESS & ~self._cbit & -LARGE
        for index in range(512):
            self._write(table + 8 * index, start + index * PAGE | flags)
        self._write(at, table | 0x63 | self._cbit)

    def _find(self, gva: int) -> tuple[int, int]:
        """The gpa of the lowest entry for ``gva``, and its level."""
        table = self._root
        for level in range(self._levels, 0, -1):
            at = table + (gva >> 12 + 9 * (level - 1) & 511) * 8
            entry = self._read(at)
            if level == 1 or (level <= 3 and entry & 0x80):
                return at, level
            assert entry & 1, f"0x{gva:x} is not mapped at level {level}"
            table = entry & _ADDRESS & ~self._cbit
        raise AssertionError("a walk ends at level 1")

    def _read(self, at: int) -> int:
        value: int = _ENTRY.unpack_from(self._ram, at)[0]
        return value

    def _write(self, at: int, entry: int) -> None:
        _ENTRY.pack_into(self._ram, at, entry)
