"""Seal a plain guest: give its page tables the C-bit, the way a SEV guest's own kernel writes them.

Every table page of every process is found, not only what the vCPUs' CR3 lead to: Linux copies the kernel's half of
the top table into each process's, so every page whose upper half equals the vCPU's is a root. Table pages are
always private; a leaf is private unless all of it lies outside the guest's RAM (devices).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from sevkvm.abi import x86
from sevkvm.errors import BadGuestData

Ram: TypeAlias = memoryview
_TABLE: Final = struct.Struct("<512Q")
_HALF: Final = x86.TABLE_ENTRIES // 2
# Linux never creates an entry above this in a guest of this size; garbage has such addresses nearly always.
_ADDRESS_END: Final = 1 << 46
_CHANGING: Final = x86.PTE_A | x86.PTE_D  # set by the processor, in one copy and not in the other


@dataclass
class Seal:
    """What was sealed. ``tables`` maps the gpa of each table page to its level; ``rejected``: roots in looks only."""

    cbit_pos: int
    levels: int
    roots: list[int] = field(default_factory=list)
    rejected: list[int] = field(default_factory=list)
    tables: dict[int, int] = field(default_factory=dict)
    private_entries: int = 0
    shared_leaves: int = 0


def seal(
    ram: Ram, top_gpa: int, *, levels: int, cbit_pos: int, private_ranges: Sequence[tuple[int, int]]
) -> Seal:
    """Set the C-bit in ``ram`` (gpa 0 up), starting from one right top table; ``private_ranges`` are half-open.

    BadGuestData if the tables under ``top_gpa`` are not a kernel's.
    """
    result = Seal(cbit_pos, levels)
    _collect(ram, top_gpa, levels, result.tables)
    for root in find_roots(ram, top_gpa):
        tables = dict(result.tables)
        try:
            _collect(ram, root, levels, tables)
        except BadGuestData:
            result.rejected.append(root)
            continue
        result.tables = tables
        result.roots.append(root)
    for gpa, level in result.tables.items():
        _seal_table(ram, gpa, level, private_ranges, result)
    return result


def find_roots(ram: Ram, top_gpa: int) -> list[int]:
    """The gpa of each page whose upper half is that of the top table, the top table included; ascending."""
    top = _TABLE.unpack_from(ram, top_gpa)
    if not any(entry & x86.PTE_P for entry in top[_HALF:]):
        raise BadGuestData(f"the top table at gpa 0x{top_gpa:x} maps no kernel")
    wanted = [entry & ~_CHANGING for entry in top[_HALF:]]
    tail = bytes(
        ram[top_gpa + 0xFF9 : top_gpa + 0x1000]
    )  # the last entry less its flags byte: a cheap first test
    roots = []
    for gpa in range(0, len(ram) - x86.PAGE_MASK, x86.PAGE_NBYTES):
        if ram[gpa + 0xFF9 : gpa + 0x1000] == tail:
            upper = _TABLE.unpack_from(ram, gpa)[_HALF:]
            if [entry & ~_CHANGING for entry in upper] == wanted:
                roots.append(gpa)
    return roots


def _collect(ram: Ram, root: int, levels: int, tables: dict[int, int]) -> None:
    """Add the table pages under a root; BadGuestData if something there cannot be a table."""
    pending = [(root, levels)]
    while pending:
        gpa, level = pending.pop()
        if gpa + x86.PAGE_NBYTES > len(ram):
            raise BadGuestData(f"a table of level {level} at gpa 0x{gpa:x}, outside RAM")
        known = tables.setdefault(gpa, level)
        if known != level:
            raise BadGuestData(f"gpa 0x{gpa:x} is a table of level {known} and of level {level}")
        for entry in _TABLE.unpack_from(ram, gpa):
            if not entry & x86.PTE_P:
                continue
            address = entry & x86.PTE_ADDRESS_MASK
            if address >= _ADDRESS_END:
                raise BadGuestData(f"entry 0x{entry:016x} of level {level} at gpa 0x{gpa:x}")
            if not is_leaf(entry, level) and tables.get(address) != level - 1:
                pending.append((address, level - 1))


def is_leaf(entry: int, level: int) -> bool:
    """Does a present entry of a level map a page, not a table?"""
    return level == 1 or (level <= 3 and bool(entry & x86.PTE_PS))


def _seal_table(ram: Ram, gpa: int, level: int, private: Sequence[tuple[int, int]], result: Seal) -> None:
    cbit = 1 << result.cbit_pos
    entries = list(_TABLE.unpack_from(ram, gpa))
    for index, entry in _present(entries):
        if is_leaf(entry, level):
            nbytes = 1 << 12 + 9 * (level - 1)
            start = entry & x86.PTE_ADDRESS_MASK & ~(nbytes - 1)  # drops the PAT bit of a large page
            if not any(start < end and first < start + nbytes for first, end in private):
                result.shared_leaves += 1
                continue
        entries[index] = entry | cbit
        result.private_entries += 1
    _TABLE.pack_into(ram, gpa, *entries)


def _present(entries: list[int]) -> Iterator[tuple[int, int]]:
    return ((index, entry) for index, entry in enumerate(entries) if entry & x86.PTE_P)


def translate(ram: Ram, root: int, levels: int, gva: int, cbit_pos: int | None) -> int | None:
    """The gpa of ``gva`` in the tables under ``root``; None if it is not mapped or outside RAM."""
    mask = x86.PTE_ADDRESS_MASK & ~(0 if cbit_pos is None else 1 << cbit_pos)
    table = root
    for level in range(levels, 0, -1):
        shift = 12 + 9 * (level - 1)
        entry: int = _TABLE.unpack_from(ram, table)[gva >> shift & 511]
        address = entry & mask
        if not entry & x86.PTE_P or address >= len(ram):
            return None
        if is_leaf(entry, level):
            return address & ~((1 << shift) - 1) | gva & ((1 << shift) - 1)
        table = address
    return None
