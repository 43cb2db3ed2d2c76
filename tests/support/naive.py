"""What an address space maps, worked out the slow and simple way from a dict of tables. Shares no code with sevkvm.

Flags here are a string of letters a leaf: w and u as they come down the walk, x when NX does not, p for the C-bit,
and the level.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

Rle = tuple[tuple[int, str | None], ...]  # (nbytes, letters, or None for a hole) of neighbours that differ
MAX_PIECES = 3000


class TooManyPieces(Exception):
    """More than the slow and simple way can do."""


class NaiveLeaf(NamedTuple):
    gva: int
    gpa: int
    nbytes: int
    level: int
    entry: int
    letters: str


class NaiveRun(NamedTuple):
    gva: int
    nbytes: int
    letters: str


@dataclass
class Naive:
    """Long mode. ``pages``: gpa to 512 entries. A table that is not there, or a reserved bit, maps nothing."""

    pages: dict[int, list[int]]
    root: int
    levels: int
    cbit: int | None = None
    nx: bool = True

    def leaves(self, ranges: Sequence[tuple[int, int]] = ((0, 1 << 64),)) -> Iterator[NaiveLeaf]:
        """Those that touch a range, whole."""
        return self._leaves(self.root, self.levels, 0, "uwx", union(ranges))

    def _leaves(
        self, gpa: int, level: int, base: int, rights: str, ranges: Sequence[tuple[int, int]]
    ) -> Iterator[NaiveLeaf]:
        span = 4096 * 512 ** (level - 1)
        for index, entry in enumerate(self.pages.get(gpa, ())):
            if not entry % 2 or self._is_reserved(entry, level):
                continue
            gva, lower = self.canonical(base + index * span), narrow(rights, entry)
            if not any(begin < gva + span and gva < end for begin, end in ranges):
                continue
            address = self._address(entry)
            if self._is_leaf(entry, level):
                letters = lower + self._kind(entry, level)
                yield NaiveLeaf(gva, address // span * span, span, level, entry, letters)
            elif not self._is_empty(address, level - 1):
                yield from self._leaves(address, level - 1, base + index * span, lower, ranges)

    @functools.cache  # noqa: B019  # lives as long as one test
    def _is_empty(self, gpa: int, level: int) -> bool:
        return not any(
            entry % 2
            and not self._is_reserved(entry, level)
            and (self._is_leaf(entry, level) or not self._is_empty(self._address(entry), level - 1))
            for entry in self.pages.get(gpa, ())
        )

    def runs(self, apart: str, ranges: Sequence[tuple[int, int]] = ((0, 1 << 64),)) -> list[NaiveRun]:
        """Letters other than those of ``apart`` are dropped; cut to the ranges and at the middle."""
        half = 4096 * 512**self.levels // 2
        found: list[NaiveRun] = []
        at = 0
        for nbytes, letters in self._rle(self.root, self.levels, "uwx"):
            start, at = at, at + nbytes
            if letters is None:
                continue
            kept = "".join(letter for letter in letters if letter in apart)
            for first, last in ((start, min(at, half)), (max(start, half), at)):
                if first >= last:
                    continue
                gva = self.canonical(first)
                for begin, end in union(ranges):
                    begin, end = max(begin, gva), min(end, gva + last - first)
                    if begin < end:
                        add_run(found, NaiveRun(begin, end - begin, kept))
        return found

    def canonical(self, gva: int) -> int:
        top = 4096 * 512**self.levels
        return gva if gva < top // 2 else gva + (1 << 64) - top

    @functools.cache  # noqa: B019  # lives as long as one test
    def _rle(self, gpa: int, level: int, rights: str) -> Rle:
        span = 4096 * 512 ** (level - 1)
        if gpa not in self.pages:
            return ((512 * span, None),)
        found: list[tuple[int, str | None]] = []
        for entry in self.pages[gpa]:
            pieces: Rle
            if not entry % 2 or self._is_reserved(entry, level):
                pieces = ((span, None),)
            elif self._is_leaf(entry, level):
                pieces = ((span, narrow(rights, entry) + self._kind(entry, level)),)
            else:
                pieces = self._rle(self._address(entry), level - 1, narrow(rights, entry))
            if len(found) > MAX_PIECES:
                raise TooManyPieces
            for nbytes, letters in pieces:
                if found and found[-1][1] == letters:
                    found[-1] = (found[-1][0] + nbytes, letters)
                else:
                    found.append((nbytes, letters))
        return tuple(found)

    def __hash__(self) -> int:
        return id(self)

    def _is_leaf(self, entry: int, level: int) -> bool:
        return level == 1 or (level <= 3 and bool(entry & 0x80))

    def _is_reserved(self, entry: int, level: int) -> bool:
        if entry >> 63 and not self.nx:
            return True
        if level > 3 and entry & 0x80:
            return True
        if not self._is_leaf(entry, level) or level == 1:
            return False
        return self._address(entry) % (4096 * 512 ** (level - 1)) & ~0x1000 != 0

    def _address(self, entry: int) -> int:
        if self.cbit is not None:
            entry &= ~(1 << self.cbit)
        return entry % (1 << 52) // 4096 * 4096

    def _kind(self, entry: int, level: int) -> str:
        private = self.cbit is not None and entry >> self.cbit & 1
        return ("p" if private else "") + str(level)


def narrow(rights: str, entry: int) -> str:
    """What is left of u, w and x below an entry."""
    has = {"u": entry & 4, "w": entry & 2, "x": not entry >> 63}
    return "".join(letter for letter in rights if has[letter])


def union(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Half-open ranges, ascending and apart."""
    found: list[tuple[int, int]] = []
    for begin, end in sorted(ranges):
        if found and begin <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        elif begin < end:
            found.append((begin, end))
    return found


def add_run(runs: list[NaiveRun], run: NaiveRun) -> None:
    """Append, or make the last run longer."""
    last = runs[-1] if runs else None
    if last and last.gva + last.nbytes == run.gva and last.letters == run.letters:
        runs[-1] = NaiveRun(last.gva, last.nbytes + run.nbytes, run.letters)
    else:
        runs.append(run)
