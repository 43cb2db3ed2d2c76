"""A guest's memory as a few thousand cells, for pictures: how much of each kind is in each cell, and where it goes.

Memory takes a cell for each so many bytes; a hole takes one, however large: most of the addresses below the end of a
guest's memory are no memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from sevkvm.abi.x86 import PAGE_NBYTES
from sevkvm.pages.pagemap import PageKind

if TYPE_CHECKING:
    from sevkvm.pages.pagemap import PageMap

Run = tuple[int, int, PageKind]  # gpa, nbytes, kind

# what matters most comes first: the order within a cell, in legends and in tables
ORDER: Final = (
    PageKind.CONFLICT,
    PageKind.SHARED,
    PageKind.TABLE,
    PageKind.PRIVATE,
    PageKind.PLAIN,
    PageKind.ROM,
    PageKind.UNTOUCHED,
    PageKind.UNMAPPED,
    PageKind.HOLE,
)


class Cell(NamedTuple):
    """``nbytes`` of guest-physical space at ``gpa``; ``shares``: bytes of each kind in it, in the order of ORDER."""

    gpa: int
    nbytes: int
    shares: tuple[tuple[PageKind, int], ...]

    @property
    def most(self) -> PageKind:
        """The kind that has most of it."""
        return max(self.shares, key=lambda share: share[1])[0]


def make_cells(pages: PageMap, most: int) -> tuple[list[Cell], int]:
    """At most ``most`` cells, ascending and without gaps, and the bytes of a cell of memory (a power of two)."""
    areas = list(_areas(pages.kinds()))
    if not areas:
        return [], PAGE_NBYTES
    if 2 * len(areas) > most:  # so many holes that they must share cells with memory
        areas = [(areas[0][0], areas[-1][1], False)]
    nbytes = PAGE_NBYTES
    while sum(1 if hole else -(-end // nbytes) - start // nbytes for start, end, hole in areas) > most:
        nbytes *= 2
    return list(_filled(_bounds(areas, nbytes), pages.kinds())), nbytes


def _areas(runs: Iterable[Run]) -> Iterator[tuple[int, int, bool]]:
    """``(gpa, end, is a hole)``."""
    area: tuple[int, int, bool] | None = None
    for gpa, nbytes, kind in runs:
        hole = kind is PageKind.HOLE
        if area and area[2] == hole:
            area = (area[0], gpa + nbytes, hole)
            continue
        if area:
            yield area
        area = (gpa, gpa + nbytes, hole)
    if area:
        yield area


def _bounds(areas: Iterable[tuple[int, int, bool]], nbytes: int) -> Iterator[tuple[int, int]]:
    for start, end, hole in areas:
        if hole:
            yield start, end
            continue
        while start < end:
            stop = min(end, (start // nbytes + 1) * nbytes)
            yield start, stop
            start = stop


def _filled(bounds: Iterable[tuple[int, int]], runs: Iterator[Run]) -> Iterator[Cell]:
    """Both cover the same addresses, so each run is looked at once for each cell it is in."""
    gpa, end, kind = 0, 0, PageKind.HOLE
    for start, stop in bounds:
        shares: dict[PageKind, int] = {}
        at = start
        while at < stop:
            if end <= at:
                gpa, nbytes, kind = next(runs)
                end = gpa + nbytes
                continue
            step = min(end, stop) - at
            shares[kind] = shares.get(kind, 0) + step
            at += step
        yield Cell(start, stop - start, tuple((each, shares[each]) for each in ORDER if each in shares))


def room(side: int) -> int:
    """How many cells a square of this side takes, with a strip beside it of an eighth of its size.

    A guest's RAM is mostly a power of two, which fills the square; ROM and holes come on top of that.
    """
    return side * side + side * side // 8


def hilbert(index: int, side: int) -> tuple[int, int]:
    """(column, row) of a cell on the curve from the top left to the top right corner; neighbours stay neighbours.

    ``side`` is a power of two. Two bits of the index choose a quarter; the curve in it is turned or mirrored.
    """
    x = y = 0
    size = 1
    while size < side:
        right = index // 2 & 1
        down = (index ^ right) & 1
        if not down:
            if right:
                x, y = size - 1 - x, size - 1 - y
            x, y = y, x
        x, y = x + size * right, y + size * down
        index //= 4
        size *= 2
    return x, y


def place(cells: Sequence[Cell], layout: str, columns: int) -> tuple[list[tuple[int, int]], int, int]:
    """(column, row) of each cell, and how many columns and rows there are; ``layout`` is ``hilbert`` or ``linear``.

    What does not fit the curve's square stands beside it, a column free between them, from the top down.
    """
    if layout == "hilbert":
        side = 1
        while room(side) < len(cells):
            side *= 2
        square = side * side
        places = [hilbert(index, side) for index in range(min(square, len(cells)))]
        strip = [divmod(index, side) for index in range(max(0, len(cells) - square))]
        places += [(side + 1 + column, row) for column, row in strip]
        return places, 1 + max((column for column, _ in places), default=0), side
    places = [(index % columns, index // columns) for index in range(len(cells))]
    return places, columns, -(-len(cells) // columns)
