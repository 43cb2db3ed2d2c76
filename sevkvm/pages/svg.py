"""The picture as SVG: a square a cell, coloured by kind; a cell of several kinds is divided among them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from typing import TYPE_CHECKING, Final

from sevkvm.abi.x86 import PAGE_NBYTES
from sevkvm.pages.cells import ORDER, Cell, make_cells, place, room
from sevkvm.pages.pagemap import PageKind

if TYPE_CHECKING:
    from sevkvm.pages.pagemap import PageMap

COLUMNS: Final = 64
MOST_CELLS: Final = room(COLUMNS)
COLOURS: Final = {
    PageKind.CONFLICT: "#d7263d",
    PageKind.SHARED: "#f59f00",
    PageKind.TABLE: "#c06be0",
    PageKind.PRIVATE: "#2463a8",
    PageKind.PLAIN: "#2a9d8f",
    PageKind.ROM: "#5f8f4e",
    PageKind.UNTOUCHED: "#c3d0de",
    PageKind.UNMAPPED: "#8b929c",
    PageKind.HOLE: "#f1f1ee",
}
_SIDE: Final = 12  # of a cell, in pixels
_LEAST: Final = 2  # of a kind in a cell: one page among thousands is still seen
_LEFT, _TOP, _LEGEND = 112, 64, 340
_LABELS: Final = 16


def svg(pages: PageMap, *, title: str, layout: str) -> Iterator[str]:
    """The file, line by line. ``title`` is anybody's text."""
    cells, nbytes = make_cells(pages, MOST_CELLS)
    places, columns, rows = place(cells, layout, COLUMNS)
    width, height = _LEFT + columns * _SIDE + _LEGEND, _TOP + max(rows * _SIDE, 24 * (len(ORDER) + 1)) + 24
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" font-family="system-ui, sans-serif" font-size="12">'
    )
    yield f'<rect width="{width}" height="{height}" fill="#fff"/>'
    yield f'<text x="{_LEFT}" y="26" font-size="18">{escape(_clean(title))}</text>'
    how = "along a Hilbert curve from the top left" if layout == "hilbert" else "row by row"
    yield (
        f'<text x="{_LEFT}" y="46" fill="#555">a square is {amount(nbytes)} of guest-physical memory, {how}; '
        "a hole is one square</text>"
    )
    yield f'<g transform="translate({_LEFT} {_TOP})" shape-rendering="crispEdges">'
    for cell, (column, row) in zip(cells, places, strict=True):
        yield _square(cell, column * _SIDE, row * _SIDE)
    yield "</g>"
    yield from _labels(cells, places, rows if layout == "hilbert" else None)
    yield from _legend(pages, _LEFT + columns * _SIDE + 28)
    yield "</svg>"


def amount(nbytes: int) -> str:
    """A size in its largest binary unit, one digit after the point if it must be."""
    for shift, unit in ((40, "TiB"), (30, "GiB"), (20, "MiB")):
        if nbytes >= 1 << shift:
            return f"{nbytes / (1 << shift):.1f}".removesuffix(".0") + f" {unit}"
    return f"{nbytes >> 10} KiB"


def _square(cell: Cell, x: int, y: int) -> str:
    shares = ", ".join(f"{kind.value} {amount(nbytes)}" for kind, nbytes in cell.shares)
    told = f"<title>0x{cell.gpa:x} to 0x{cell.gpa + cell.nbytes:x}: {shares}</title>"
    bars = []
    for kind, pixels in _divide(cell):
        bars.append(f'<path fill="{COLOURS[kind]}" d="M{x} {y}h{pixels}v{_SIDE}h-{pixels}z"/>')
        x += pixels
    return f"<g>{told}{''.join(bars)}</g>"


def _divide(cell: Cell) -> list[tuple[PageKind, int]]:
    """The pixels of each kind: _LEAST and its share of the rest; what rounding leaves goes to the largest."""
    rest = _SIDE - _LEAST * len(cell.shares)
    if rest < 0:  # a cell of seven kinds
        return [(kind, _SIDE // len(cell.shares)) for kind, _ in cell.shares]
    pixels = {kind: _LEAST + rest * nbytes // cell.nbytes for kind, nbytes in cell.shares}
    pixels[cell.most] += _SIDE - sum(pixels.values())
    return list(pixels.items())


def _labels(cells: Sequence[Cell], places: Sequence[tuple[int, int]], side: int | None) -> Iterator[str]:
    """Addresses: beside the rows, or (``side`` of the curve) in the squares where its sixteenths begin."""
    step = -(-len(cells) // _LABELS // COLUMNS) * COLUMNS if side is None else max(1, side * side // _LABELS)
    for index in range(0, len(cells), max(step, 1)):
        column, row = places[index]
        gpa = f"0x{cells[index].gpa:x}"
        if side is None:
            at = f'x="{_LEFT - 8}" y="{_TOP + row * _SIDE + 10}" text-anchor="end" fill="#333"'
        else:
            x = _LEFT + max(0, min(column, side - 6)) * _SIDE
            at = (
                f'x="{x + 2}" y="{_TOP + row * _SIDE + 10}" font-size="10" fill="#000" stroke="#fff" '
                'stroke-width="3" paint-order="stroke" pointer-events="none"'
            )
        yield f"<text {at}>{gpa}</text>"


def _legend(pages: PageMap, x: int) -> Iterator[str]:
    totals = pages.totals()
    y = _TOP
    for kind in ORDER:
        if kind not in totals:
            continue
        nbytes = totals[kind]
        yield f'<rect x="{x}" y="{y}" width="14" height="14" fill="{COLOURS[kind]}" stroke="#999"/>'
        yield (
            f'<text x="{x + 22}" y="{y + 11}">{kind.value}: {amount(nbytes)} '
            f'<tspan fill="#777">({nbytes // PAGE_NBYTES} pages)</tspan></text>'
        )
        y += 24


def _clean(text: str) -> str:
    """Without what XML forbids."""
    return "".join(char if char.isprintable() else "?" for char in text)
