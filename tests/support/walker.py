"""A page-table walker of the tests' own: every leaf under a root, C-bit told apart. Shares no code with sevkvm."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Leaf:
    gva: int
    gpa: int
    nbytes: int
    flags: int  # the entry's bits 0 to 11 and 52 to 63
    private: bool


def leaves(ram: memoryview, root: int, levels: int, cbit_pos: int | None) -> Iterator[Leaf]:
    """Every present leaf, ascending in gva; device memory included."""
    cbit = 0 if cbit_pos is None else 1 << cbit_pos
    yield from _table(ram, root, levels, cbit, 0, levels)


def table_pages(ram: memoryview, root: int, levels: int, cbit_pos: int | None) -> set[int]:
    """The gpa of each table page under a root, the root included."""
    cbit = 0 if cbit_pos is None else 1 << cbit_pos
    found = {root}
    todo = [(root, levels)]
    while todo:
        gpa, level = todo.pop()
        for entry in ram[gpa : gpa + 4096].cast("Q"):
            if entry & 1 and level > 1 and not (level <= 3 and entry & 0x80):
                child = entry % (1 << 52) // 4096 * 4096 & ~cbit
                if child not in found:
                    found.add(child)
                    todo.append((child, level - 1))
    return found


def lookup(ram: memoryview, root: int, levels: int, cbit_pos: int | None, gva: int) -> int | None:
    """The gpa of ``gva``, or None."""
    return walk(ram, root, levels, cbit_pos, gva)[0]


def walk(
    ram: memoryview, root: int, levels: int, cbit_pos: int | None, gva: int
) -> tuple[int | None, list[int]]:
    """As ``lookup``, and the gpa of each table on the way."""
    cbit = 0 if cbit_pos is None else 1 << cbit_pos
    gpa = root
    tables = []
    for level in range(levels, 0, -1):
        tables.append(gpa)
        shift = 12 + 9 * (level - 1)
        entry = ram[gpa : gpa + 4096].cast("Q")[(gva >> shift) % 512]
        if not entry & 1:
            return None, tables
        address = entry % (1 << 52) // 4096 * 4096 & ~cbit
        if level == 1 or (level <= 3 and entry & 0x80):
            return (address >> shift << shift) + gva % (1 << shift), tables
        gpa = address
    raise AssertionError("a walk ends at level 1")


def _table(ram: memoryview, gpa: int, level: int, cbit: int, base: int, levels: int) -> Iterator[Leaf]:
    shift = 12 + 9 * (level - 1)
    for index, entry in enumerate(ram[gpa : gpa + 4096].cast("Q")):
        if not entry & 1:
            continue
        gva = base | index << shift
        if level == levels and index >= 256:
            gva |= (1 << 64) - (1 << 12 + 9 * levels)  # canonical
        address = entry % (1 << 52) // 4096 * 4096 & ~cbit
        if level == 1 or (level <= 3 and entry & 0x80):
            flags = entry & 0xFFF | entry >> 52 << 52
            yield Leaf(gva, address >> shift << shift, 1 << shift, flags, bool(entry & cbit))
        else:
            yield from _table(ram, address, level - 1, cbit, gva, levels)
