"""Random page tables for every paging mode: shared subtrees, self-maps, cycles, holes; every flag bit at random.

No address goes above bit 49, since QEMU's monitor drops bits 50 and 51. No reserved bit is set unless told.
"""

from __future__ import annotations

import mmap
import random
from typing import Final

from tests.support.emulated import RAM_NBYTES, Mode
from tests.support.refwalk import LAYOUTS, NX, PS, P

TABLES_GPA: Final = 0x10_0000
TABLES_NBYTES: Final = 0x10_0000
_POOL: Final = 5  # tables a level
_PROPER: Final = 3  # those that make sense at their own level alone
# Present entries of a table that leads to others: leaves multiply with each level.
_FANOUT: Final[dict[Mode, int]] = {"32": 40, "pse": 40, "pae": 12, "4level": 6, "5level": 4}
_LONG_UNSOUND: Final = [7, 13, 20, 21, 29, 63]
_UNSOUND: Final[dict[Mode, list[int]]] = {
    "32": [7, 13, 21],
    "pse": [21],
    "pae": [1, 2, 5, 6, 7, 8, 13, 20, 52, 57, 62, 63],
    "4level": _LONG_UNSOUND,
    "5level": _LONG_UNSOUND,
}


class RandomTables:
    """``data`` is what lies at TABLES_GPA; ``cr3`` has random low bits.

    ``nx``: bit 63 too is random. ``phys_bits``: pages lie below (in the 32-bit modes, below 4 GiB).
    ``unsound``: one entry in four has a bit set that may be a reserved one.
    """

    def __init__(
        self, rng: random.Random, mode: Mode, *, nx: bool = True, unsound: bool = False, phys_bits: int = 50
    ) -> None:
        self._rng = rng
        self._phys_bits = phys_bits if LAYOUTS[mode].entry_nbytes == 8 else 32
        self._unsound = unsound
        self._mode: Mode = mode
        self._nx = nx
        self.data = bytearray(TABLES_NBYTES)
        self._layout = LAYOUTS[mode]
        pages = list(range(TABLES_GPA, TABLES_GPA + TABLES_NBYTES, 4096))
        rng.shuffle(pages)
        depths = range(len(self._layout.levels))
        self._gpas = {depth: [pages.pop() for _ in range(_POOL)] for depth in depths}
        self._last = len(depths) - 1
        if mode == "pae":  # four entries anywhere in a page of something else
            self._gpas[0] = [gpa + rng.randrange(128) * 32 for gpa in self._gpas[0]]
            for gpa in self._gpas[0]:
                self._store(gpa & ~0xFFF, self._junk(512))
        # Tables without a PS bit, here and below, make sense at any depth: cycles and self-maps go through them.
        self._plain = {gpa for gpas in self._gpas.values() for gpa in gpas[_PROPER:]}
        for depth in depths:
            for gpa in self._gpas[depth]:
                self._fill(depth, gpa)
        self.cr3 = self._gpas[0][0] | rng.randrange(32 if mode == "pae" else 4096)

    def write(self, ram: mmap.mmap) -> None:
        """Into guest RAM."""
        ram[TABLES_GPA : TABLES_GPA + TABLES_NBYTES] = self.data

    def _fill(self, depth: int, gpa: int) -> None:
        rng, nentries = self._rng, self._layout.levels[depth].nentries
        plain = gpa in self._plain
        entries = self._junk(nentries)
        last = depth == self._last
        if last and rng.random() < 0.2:  # neighbouring pages of one kind
            first = self._leaf(depth, plain)
            room = (1 << self._phys_bits) - (first & (1 << self._phys_bits) - 4096)
            entries = [first + 4096 * index for index in range(min(nentries, room // 4096))]
        count = nentries // 8 if last else min(_FANOUT[self._mode], nentries)
        for index in rng.sample(range(len(entries)), min(count, len(entries))):
            entries[index] = self._entry(depth, plain)
        if rng.random() < 0.5:  # the same subtree or page twice in a row
            index = rng.randrange(len(entries) - 1)
            entries[index + 1] = entries[index]
        self._store(gpa, entries)

    def _junk(self, nentries: int) -> list[int]:
        """Entries that are not present."""
        return [self._rng.getrandbits(64) & ~P for _ in range(nentries)]

    def _store(self, gpa: int, entries: list[int]) -> None:
        size = self._layout.entry_nbytes
        data = b"".join((entry & (1 << size * 8) - 1).to_bytes(size, "little") for entry in entries)
        self.data[gpa - TABLES_GPA : gpa - TABLES_GPA + len(data)] = data

    def _entry(self, depth: int, plain: bool) -> int:
        rng = self._rng
        large = self._layout.levels[depth].large and not plain
        if depth == self._last or (large and rng.random() < 0.2):
            return self._leaf(depth, plain)
        kind = rng.random()
        if kind < 0.1:  # any table of whatever depth, itself among them
            anywhere = not plain and depth + 1 == self._last
            gpa = rng.choice(
                [gpa for gpas in self._gpas.values() for gpa in gpas[0 if anywhere else _PROPER :]]
            )
        elif kind < 0.15:  # no memory
            gpa = rng.randrange(RAM_NBYTES, 0xB000_0000)
        else:
            gpa = rng.choice(self._gpas[depth + 1][_PROPER if plain else 0 :])
        return gpa & ~0xFFF | self._flags(depth, pat=False)

    def _leaf(self, depth: int, plain: bool) -> int:
        shift = self._layout.levels[depth].shift
        gpa = self._rng.randrange(1 << self._phys_bits - shift) << shift
        if depth == self._last:
            return gpa | self._flags(depth, pat=not plain)
        return gpa | self._rng.getrandbits(1) << 12 | PS | self._flags(depth, pat=False)

    def _flags(self, depth: int, *, pat: bool) -> int:
        """P and all that is neither address nor reserved. ``pat``: bit 7 as well."""
        if self._unsound and not self._rng.randrange(4):
            return P | 1 << self._rng.choice(_UNSOUND[self._mode])
        if self._mode == "pae" and depth == 0:
            return P | self._rng.getrandbits(12) & 0xE18
        free = 0xF7E | (PS if pat else 0)
        if self._mode == "32" and depth == 0:  # ignored without CR4.PSE
            free |= PS
        if self._mode in ("4level", "5level"):
            free |= 0x7FF << 52
        return P | self._rng.getrandbits(64) & (free | (NX if self._nx else 0))
