"""Arithmetic on sorted ranges of addresses."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator


def append(ranges: list[tuple[int, int]], start: int, end: int) -> None:
    """Add ``[start, end)`` to (start, nbytes) ranges, joined to the last one if it touches."""
    if ranges and sum(ranges[-1]) == start:
        start = ranges.pop()[0]
    ranges.append((start, end - start))


def sweep(layers: Iterable[tuple[int, Iterable[tuple[int, int]]]]) -> Iterator[tuple[int, int, int]]:
    """``(start, end, mask)`` of the stretches, from 0 on, in which the same layers lie.

    Each layer is a bit and its ascending ranges ``(start, end)``, which do not overlap: so every edge toggles the bit.
    """
    position = mask = 0
    for edge, bit in heapq.merge(*(_edges(bit, ranges) for bit, ranges in layers)):
        if edge > position:
            yield position, edge, mask
            position = edge
        mask ^= bit


def _edges(bit: int, ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    for start, end in ranges:
        yield start, bit
        yield end, bit
