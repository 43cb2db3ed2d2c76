"""Pictures of a map of pages: nothing is lost between the map and what is drawn."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sevkvm.abi.x86 import MAX_PHYS_BIT
from sevkvm.cli.pages_plot import plot
from sevkvm.pages.cells import ORDER, hilbert, make_cells, place, room
from sevkvm.pages.changes import changes
from sevkvm.pages.html import html
from sevkvm.pages.pagemap import PageKind, PageMap
from sevkvm.pages.svg import COLOURS, MOST_CELLS, svg

PAGE = 4096
GIB1 = 1 << 30
PRIVATE, SHARED, CONFLICT, HOLE = PageKind.PRIVATE, PageKind.SHARED, PageKind.CONFLICT, PageKind.HOLE

runs_of_pages = st.lists(
    st.tuples(st.sampled_from(list(PageKind)), st.one_of(st.integers(1, 9), st.integers(1, 1 << 28))),
    max_size=40,
)


def page_map(runs: list[tuple[PageKind, int]]) -> PageMap:
    """From (kind, pages)."""
    at, stretches = 0, []
    for kind, npages in runs:
        stretches.append((at, at + npages * PAGE, kind, None))
        at += npages * PAGE
    return PageMap(stretches)


SMALL = page_map(
    [(PRIVATE, 160), (SHARED, 96), (PRIVATE, 130000), (CONFLICT, 1), (PRIVATE, 815), (HOLE, 1 << 18)]
)


def huge() -> PageMap:
    """1 TiB in two parts, a shared page in every 64 MiB."""
    runs = [(PRIVATE, 786431), (SHARED, 1), (HOLE, 1 << 18)]
    return page_map(runs + [(PRIVATE, 16383), (SHARED, 1)] * 16336)


@given(runs=runs_of_pages, most=st.integers(16, 200))
@settings(deadline=None)
def test_cells_cover_everything_once(runs: list[tuple[PageKind, int]], most: int) -> None:
    pages = page_map(runs)
    cells, nbytes = make_cells(pages, most)
    assert len(cells) <= most
    position = 0
    sums: dict[PageKind, int] = {}
    for cell in cells:
        assert cell.gpa == position
        position += cell.nbytes
        assert sum(share for _, share in cell.shares) == cell.nbytes
        assert [kind for kind, _ in cell.shares] == [kind for kind in ORDER if kind in dict(cell.shares)]
        assert cell.nbytes <= nbytes or cell.shares == ((HOLE, cell.nbytes),)
        for kind, share in cell.shares:
            sums[kind] = sums.get(kind, 0) + share
    assert sums == pages.totals()
    assert nbytes & (nbytes - 1) == 0


@pytest.mark.parametrize("side", [1, 2, 4, 16, 64])
def test_the_curve_visits_each_cell_and_steps_to_a_neighbour(side: int) -> None:
    places = [hilbert(index, side) for index in range(side * side)]
    assert len(set(places)) == side * side
    assert all(0 <= x < side and 0 <= y < side for x, y in places)
    steps = pairwise(places)
    assert all(abs(x - u) + abs(y - v) == 1 for (x, y), (u, v) in steps)
    assert places[0] == (0, 0)


@pytest.mark.parametrize("layout", ["hilbert", "linear"])
@pytest.mark.parametrize("pages", [SMALL, huge(), page_map([])])
def test_no_two_cells_are_in_one_place(layout: str, pages: PageMap) -> None:
    cells, _ = make_cells(pages, room(16))
    places, columns, rows = place(cells, layout, 16)
    assert len(set(places)) == len(places) == len(cells)
    assert all(column < columns and row < rows for column, row in places)


def drawn(text: str) -> list[str]:
    """The titles of the squares."""
    root = ET.fromstring(text)
    return [title.text or "" for title in root.iter("{http://www.w3.org/2000/svg}title")]


@pytest.mark.parametrize("layout", ["hilbert", "linear"])
@pytest.mark.parametrize("pages", [SMALL, huge(), page_map([])])
def test_svg_has_a_square_for_each_cell(layout: str, pages: PageMap) -> None:
    text = "\n".join(svg(pages, title="<a> & \x1b b", layout=layout))
    cells, _ = make_cells(pages, MOST_CELLS)
    titles = drawn(text)
    assert [int(title.split(" ")[0], 16) for title in titles] == [cell.gpa for cell in cells]
    assert "&lt;a&gt; &amp; ? b" in text
    assert len(text) < 2_000_000
    for kind in pages.totals():
        assert f">{kind.value}: " in text


def test_the_legend_has_room_for_a_terabyte() -> None:
    pages = page_map([(PageKind.UNTOUCHED, (1 << 28) - 1), (PageKind.UNMAPPED, 123_456_789)])
    root = ET.fromstring("\n".join(svg(pages, title="", layout="hilbert")))
    told = [each for each in root.iter() if "".join(each.itertext()).endswith("(268435455 pages)")]
    text = next(each for each in told if each.tag.endswith("text"))
    most = 7.2 * len("".join(text.itertext()))  # of 12 pixels; letters are 7 wide at most, on average
    assert float(text.attrib["x"]) + most <= float(root.attrib["width"])


def luminance(colour: str) -> float:
    """Relative luminance, by WCAG 2."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_page_tables_are_seen_in_private_memory() -> None:
    """They are a few pages among thousands: a stripe of two pixels."""
    table, private = luminance(COLOURS[PageKind.TABLE]), luminance(COLOURS[PageKind.PRIVATE])
    assert (table + 0.05) / (private + 0.05) > 1.7


def test_one_page_in_a_terabyte_is_seen() -> None:
    pages = page_map([(PRIVATE, 100_000_000), (CONFLICT, 1), (PRIVATE, 168_435_455)])
    text = "\n".join(svg(pages, title="", layout="hilbert"))
    assert text.count('fill="#d7263d"') == 2  # a bar of its own, and the legend
    (cell,) = [title for title in drawn(text) if "conflict" in title]
    assert cell == "0x5f50000000 to 0x5f60000000: conflict 4 KiB, private 256 MiB"


def embedded(text: str) -> dict[str, object]:
    found = json.loads(re.search(r"^const data = (.*);$", text, re.MULTILINE)[1])  # type: ignore[index]
    assert isinstance(found, dict)
    return found


def runs_in(text: str) -> list[tuple[int, int, PageKind]]:
    """What a browser makes of the runs."""
    data, at, found = embedded(text), 0, []
    names = [PageKind(kind["name"]) for kind in data["kinds"]]  # type: ignore[attr-defined]
    for letter, digits in re.findall("([A-I])([0-9a-z]+)", str(data["runs"])):
        nbytes = int(digits, 36) * PAGE
        found.append((at, nbytes, names[ord(letter) - 65]))
        at += nbytes
    return found


@given(runs=runs_of_pages)
@settings(deadline=None)
def test_html_has_every_run(runs: list[tuple[PageKind, int]]) -> None:
    pages = page_map(runs)
    assert runs_in(html(pages, title="", layout="linear")) == list(pages.kinds())


@given(runs=runs_of_pages)
@settings(deadline=None)
def test_html_of_too_many_runs_keeps_how_much_there_is_in_each_block(
    runs: list[tuple[PageKind, int]],
) -> None:
    pages = page_map(runs)
    text = html(pages, title="", layout="hilbert", most_runs=20)
    found, block = runs_in(text), embedded(text)["block"]
    assert isinstance(block, int)
    assert len(found) <= max(20, len(runs) if block == PAGE else 0)
    coarse = page_map([(kind, nbytes // PAGE) for _, nbytes, kind in found])
    last = max((gpa + nbytes for gpa, nbytes, _ in found), default=0)
    edges = {gpa // block * block for gpa, _, _ in pages.kinds()}
    for edge in edges:
        before, after = ({} for _ in range(2))
        for sums, each in ((before, pages), (after, coarse)):
            for run in each.runs(edge, min(edge + block, last)):
                sums[run.kind] = sums.get(run.kind, 0) + run.nbytes
        assert before == after


def test_html_is_one_file_that_asks_nobody() -> None:
    text = html(SMALL, title="</script><script>alert(1)<!--", layout="hilbert")
    assert text.count("<script>") == text.count("</script>") == 1
    assert "<!--" not in text
    assert "default-src 'none'" in text
    assert not re.search(r"(https?:)?//[a-z]|src=|href=|url\(|@import", text)
    assert embedded(text)["title"] == "</script><script>alert(1)<!--"


@pytest.mark.parametrize("columns", [20, 80, 200])
def test_plot_without_colour_is_letters(columns: int) -> None:
    for layout in ("linear", "hilbert"):
        *lines, _, meaning, legend = plot(SMALL, layout=layout, columns=columns, colour=False)
        body = "".join(line.partition(" ")[2] if layout == "linear" else line for line in lines)
        assert set(body) <= set("pPsSxX. ")
        assert "x" in body
        assert all(line.isascii() and line.isprintable() for line in [*lines, meaning, legend])
        assert max(map(len, lines)) <= max(columns, 40)
        assert legend == "X conflict  S shared  P private  . hole"


def test_plot_in_colour_shows_shares() -> None:
    lines = list(plot(page_map([(PRIVATE, 3), (SHARED, 1)] * 4096), layout="linear", columns=80, colour=True))
    # a quarter shared: two of eight parts, in orange on blue
    assert "\x1b[38;2;245;159;0;48;2;36;99;168m▂" in lines[0]
    assert all(line.endswith("\x1b[0m") for line in lines[:-3])


# ---- changes


@given(before=runs_of_pages, after=runs_of_pages)
@settings(deadline=None)
def test_changes_are_all_that_differs(
    before: list[tuple[PageKind, int]], after: list[tuple[PageKind, int]]
) -> None:
    one, two = page_map(before), page_map(after)
    found = list(changes(one.kinds(), two.kinds()))
    edges = sorted(
        {edge for pages in (one, two) for gpa, nbytes, _ in pages.kinds() for edge in (gpa, gpa + nbytes)}
    )
    for gpa in edges[:-1]:
        was, now = one.kind(gpa) or HOLE, two.kind(gpa) or HOLE
        inside = [change[2:] for change in found if change.gpa <= gpa < change.gpa + change.nbytes]
        assert inside == ([] if was is now else [(was, now)])
    for lower, upper in pairwise(found):
        assert lower.gpa + lower.nbytes <= upper.gpa
        assert lower.gpa + lower.nbytes < upper.gpa or lower[2:] != upper[2:]
    assert not any(change.gpa + change.nbytes > 1 << MAX_PHYS_BIT for change in found)
