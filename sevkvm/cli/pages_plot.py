"""The map of pages on a terminal: colours and blocks where there is a screen, letters where there is none."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from sevkvm.cli.render import size
from sevkvm.pages.cells import ORDER, Cell, make_cells, place, room
from sevkvm.pages.pagemap import PageKind
from sevkvm.pages.svg import COLOURS

if TYPE_CHECKING:
    from sevkvm.pages.pagemap import PageMap

LETTERS = {
    PageKind.CONFLICT: "x",
    PageKind.SHARED: "s",
    PageKind.TABLE: "t",
    PageKind.PRIVATE: "p",
    PageKind.PLAIN: "n",
    PageKind.ROM: "r",
    PageKind.UNTOUCHED: "0",
    PageKind.UNMAPPED: "u",
    PageKind.HOLE: ".",
}
_MARKED = (PageKind.CONFLICT, PageKind.SHARED)  # seen in a cell however little of it they are
_BLOCKS = " ▁▂▃▄▅▆▇█"
_ADDRESS_WIDTH = 18
_ROWS = 24


def plot(pages: PageMap, *, layout: str, columns: int, colour: bool) -> Iterator[str]:
    """Lines of at most ``columns`` characters (40 at least), a legend below them."""
    if layout == "hilbert":
        side = 4
        # a cell is two characters wide, which makes it a square; beside them stands a strip
        while side < 64 and 2 * (2 * side + side // 4 + 1) <= columns:
            side *= 2
        cells, nbytes = make_cells(pages, room(side))
        width = side
    else:
        width = 8
        while 2 * width <= max(columns, 40) - _ADDRESS_WIDTH:
            width *= 2
        cells, nbytes = make_cells(pages, width * _ROWS)
    paint = _coloured if colour else _lettered
    rows = _rows(cells, layout, width)
    for gpa, row in rows:
        text = "".join(
            ("  " if layout == "hilbert" else " ") if cell is None else paint(cell, layout) for cell in row
        )
        head = "" if layout == "hilbert" else f"0x{gpa:<{_ADDRESS_WIDTH - 3}x} "
        yield f"{head}{text}".rstrip() if not colour else f"{head}{text}\x1b[0m"
    yield ""
    yield f"a cell is {size(nbytes)}, a hole is one cell; {_meaning(colour)}"
    yield "  ".join(_key(kind, colour) for kind in ORDER if kind in pages.totals())


def _rows(cells: list[Cell], layout: str, columns: int) -> Iterator[tuple[int, list[Cell | None]]]:
    """(gpa of the first cell, cells from left to right)."""
    places, columns, rows = place(cells, layout, columns)
    grid: list[list[Cell | None]] = [[None] * columns for _ in range(rows)]
    for cell, (column, row) in zip(cells, places, strict=True):
        grid[row][column] = cell
    return ((next((cell.gpa for cell in row if cell), 0), row) for row in grid)


def _lettered(cell: Cell, layout: str) -> str:
    """A capital if all of the cell is of that kind."""
    if len(cell.shares) == 1:
        text = LETTERS[cell.most].upper()
    else:
        marked = next((kind for kind, _ in cell.shares if kind in _MARKED), cell.most)
        text = LETTERS[marked]
    return text * (2 if layout == "hilbert" else 1)


def _coloured(cell: Cell, layout: str) -> str:
    """The two kinds that matter most, one above the other, as high as their shares."""
    below = next((kind for kind, _ in cell.shares if kind in _MARKED), cell.most)
    nbytes = dict(cell.shares)
    above = max((kind for kind in nbytes if kind is not below), key=lambda kind: nbytes[kind], default=below)
    eighths = 8 if above is below else min(7, max(1, round(8 * nbytes[below] / cell.nbytes)))
    text = _BLOCKS[eighths] * (2 if layout == "hilbert" else 1)
    return f"\x1b[38;2;{_rgb(below)};48;2;{_rgb(above)}m{text}"


def _rgb(kind: PageKind) -> str:
    digits = COLOURS[kind][1:]
    return ";".join(str(int(digits[at : at + 2], 16)) for at in (0, 2, 4))


def _meaning(colour: bool) -> str:
    if colour:
        return "of several kinds in a cell two are shown, conflicts and shared pages always"
    return "a small letter is a cell of several kinds: the largest, or what is shared in it or in conflict"


def _key(kind: PageKind, colour: bool) -> str:
    mark = f"\x1b[38;2;{_rgb(kind)}m██\x1b[0m" if colour else LETTERS[kind].upper()
    return f"{mark} {kind.value}"
