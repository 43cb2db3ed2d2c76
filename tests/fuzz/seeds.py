#!/usr/bin/env python3
"""Write the first inputs of fuzz_tables.c: shapes of tables that random bytes take long to find.

tests/fuzz/seeds.py DIRECTORY
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path

LEAVES, RUNS, LEAVES_TEXT, RUNS_TEXT = range(4)
SMALL_CACHE, SMALL_SUMMARIES, SCAN = 0x10, 0x20, 0x40
PAGING_32, PSE, PAE, LEVEL4, LEVEL5 = range(5)
NX = 0x10
C51 = 0x80 | 19
WRITABLE_USER = 6
P, RW, US, PS, G = 1, 2, 4, 0x80, 0x100
LAST = 511


def leaves(page: int, first: int, count: int, entry: int, step: int = 12) -> bytes:
    """``count + 1`` entries from ``first`` on; each ``1 << step`` more than the one before."""
    return struct.pack("<BBHHQB", 0, page, first, count, entry, step)


def table(
    page: int, first: int, count: int, child: int, flags: int = P | RW | US, *, cbit: bool = False
) -> bytes:
    """As many entries that lead to one table."""
    return struct.pack("<BBHHBHB", 1, page, first, count, child, flags, cbit)


def tables(page: int, first: int, count: int, child: int, flags: int = P | RW | US) -> bytes:
    """As many entries that lead to as many tables."""
    return struct.pack("<BBHHBHB", 2, page, first, count, child, flags, 0)


def copies(page: int, count: int) -> bytes:
    """The pages after this one become like it."""
    return struct.pack("<BBHH", 3, page, 0, count)


def world(
    how: int, mode: int, root: int = 0, *, cbit: int = 0, ranges: tuple[tuple[int, int], ...] = ()
) -> bytes:
    """How to list, and which form the tables have. A range: what lies between it and the one before, and its size."""
    head = struct.pack("<BHBBB", how, WRITABLE_USER | 0x388 if how & 3 == RUNS else 0, mode, cbit, root)
    if mode & 0xF == PAE:
        head += b"\0"
    head += bytes([len(ranges)])
    for gap, nbytes in ranges:
        head += gap.to_bytes(7, "little") + nbytes.to_bytes(6, "little") + b"\0"
    return head


def chain(levels: int) -> bytes:
    """Tables 0 (the top) to levels - 1, one entry each: the way to the page table."""
    return b"".join(table(page, 0, 0, page + 1) for page in range(levels - 1))


SHAPES = {
    # every entry of the one page leads to itself
    "bomb": table(0, 0, LAST, 0),
    "bomb-read-only-half": table(0, 0, 255, 0) + table(0, 256, 255, 0, P | US),
    "bomb-with-a-hole": table(0, 0, LAST - 1, 0),
    "bomb-of-nothing": table(0, 0, LAST, 1)
    + table(1, 0, LAST, 2)
    + table(2, 0, LAST, 3)
    + leaves(3, 0, 0, 0),
    "self-map": chain(4) + leaves(3, 0, 99, 0x5000 | P | RW) + table(0, 493, 0, 0),
    # one full page table under many entries, some of which forbid writing
    "shared-full": chain(3)
    + table(2, 0, 100, 3)
    + table(2, 101, 100, 3, P | US)
    + leaves(3, 0, LAST, 0x100000 | P | RW | US),
    "shared-nearly-full": chain(3) + table(2, 0, 300, 3) + leaves(3, 1, LAST - 1, 0x100000 | P | RW | US),
    "shared-alternating": chain(3)
    + table(2, 0, LAST, 3)
    + b"".join(leaves(3, i, 0, 0x7000 | P) for i in range(0, 40, 2)),
    "full-upper": chain(2) + table(1, 0, LAST, 2) + leaves(2, 0, LAST, PS | P | RW | US, 21),
    "giant-pages": chain(2) + leaves(1, 0, LAST, PS | P | RW, 30) + leaves(1, 7, 0, PS | P | 1 << 13),
    "many-tables": chain(3)
    + tables(2, 0, 140, 10)
    + leaves(10, 3, 5, 0x9000 | P | RW | G)
    + copies(10, 63)
    + copies(73, 63),
    "many-uppers": chain(2)
    + tables(1, 0, 70, 10)
    + table(10, 5, 2, 90)
    + copies(10, 63)
    + leaves(90, 0, 9, 0x1000 | P),
    "unreadable": chain(4) + table(2, 1, 5, 150) + table(1, 1, 1, 150) + leaves(3, 0, 3, P),
    "reserved": chain(4)
    + leaves(3, 0, 9, 1 << 63 | P)
    + leaves(2, 1, 9, PS | P | 0x3000, 21)
    + table(0, 9, 3, 1, P | PS),
    "cycle": table(0, 0, 1, 1) + table(1, 0, 1, 2) + table(2, 0, 1, 3) + table(3, 0, 1, 0),
}
MIDDLE = ((0x7FFF_0000_0000, 0x2_0000_0000),)
SMALL = ((0x1800, 0x2000), (0x500, 0x30_0000), (0x1_0000, 0x4000_0000))
CUT = ((0, 0x70_1234), (0x1_0000, 0x8000_0000))


def main() -> None:
    """Every shape in every mode, kind and with some ranges; most are dropped again by a merge for coverage."""
    directory = Path(sys.argv[1])
    directory.mkdir(exist_ok=True)
    for name, shape in SHAPES.items():
        for mode in (PAGING_32, PSE, PAE | NX, LEVEL4, LEVEL4 | NX, LEVEL5 | NX):
            for kind in (LEAVES, RUNS, RUNS_TEXT):
                for number, ranges in enumerate(((), SMALL, MIDDLE, CUT)):
                    how = kind | (SMALL_CACHE | SMALL_SUMMARIES if number & 1 else SCAN)
                    data = world(how, mode, cbit=C51 if number else 0, ranges=ranges) + shape
                    (directory / f"{name}-{mode:02x}-{kind}-{number}").write_bytes(data)


if __name__ == "__main__":
    main()
