"""The HTML map in a browser: pointed at, clicked, read. Nothing here asserts on what it looks like."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sevkvm.pages.html import html
from sevkvm.pages.pagemap import PageKind, PageMap
from tests.support.chromium import Browser, chromium

pytestmark = pytest.mark.host

PAGE, MIB1, GIB1 = 4096, 1 << 20, 1 << 30
SHARED_GPA = 5 * MIB1 + 3 * PAGE
# 1 GiB, a page of it shared, and ROM below 4 GiB
SMALL = PageMap(
    [
        (0, SHARED_GPA, PageKind.PRIVATE, True),
        (SHARED_GPA, SHARED_GPA + PAGE, PageKind.SHARED, False),
        (SHARED_GPA + PAGE, GIB1, PageKind.PRIVATE, True),
        (GIB1, 0xFFFC_0000, PageKind.HOLE, None),
        (0xFFFC_0000, 1 << 32, PageKind.ROM, None),
    ]
)


def huge() -> PageMap:
    """1 TiB: 2 GiB private, 2 GiB never touched, and so on; a conflict at the end."""
    step = 2 * GIB1
    kinds = (PageKind.PRIVATE, PageKind.UNTOUCHED)
    stretches = [(gpa, gpa + step, kinds[gpa // step % 2], None) for gpa in range(0, 1 << 40, step)]
    last = stretches.pop()
    return PageMap(
        [
            *stretches,
            (last[0], (1 << 40) - PAGE, last[2], None),
            ((1 << 40) - PAGE, 1 << 40, PageKind.CONFLICT, None),
        ]
    )


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


def show(browser: Browser, directory: Path, pages: PageMap, **options: object) -> None:
    path = directory / "pages.html"
    path.write_text(html(pages, **{"title": "a <b>guest</b> & more", "layout": "hilbert", **options}))  # type: ignore[arg-type]
    browser.events.clear()
    browser.open(path.as_uri())


def at(browser: Browser, column: int, row: int) -> tuple[float, float]:
    """The middle of a cell, in the window."""
    left, top, size = browser.evaluate(
        "(() => { const box = $('map').getBoundingClientRect(); return [box.left + 1, box.top + 1, pixels]; })()"
    )
    return left + (column + 0.5) * size, top + (row + 0.5) * size


def text(browser: Browser, name: str) -> str:
    found = browser.evaluate(f"document.getElementById('{name}').textContent")
    assert isinstance(found, str)
    return found


def test_hover_tells_address_and_kind(browser: Browser, tmp_path: Path) -> None:
    show(browser, tmp_path, SMALL)
    assert browser.evaluate("document.title") == "a <b>guest</b> & more"
    assert browser.evaluate("document.querySelector('h1 b')") is None
    assert text(browser, "range") == "0x0 to 0x100000000 (4 GiB), a cell is 256 KiB"
    browser.point(*at(browser, 0, 0))
    assert text(browser, "readout") == "0x0 to 0x40000\n256 KiB: private\nin a run 0x0 to 0x503000 (5 MiB)"
    # the 21st cell of the curve, by hand: the second quarter of 16, 2nd of it, 1st of that
    browser.point(*at(browser, 6, 0))
    assert (
        text(browser, "readout")
        == "0x500000 to 0x540000\n256 KiB\nshared: 4 KiB (1.56 %)\nprivate: 252 KiB (98.4 %)"
    )
    # the square is full of RAM: the hole is the first cell beside it, however large, and ROM comes next
    browser.point(*at(browser, 65, 0))
    assert text(browser, "readout").startswith("0x40000000 to 0xfffc0000\n3 GiB: hole\n")
    browser.point(*at(browser, 65, 1))
    assert text(browser, "readout").startswith("0xfffc0000 to 0x100000000\n256 KiB: rom\n")
    # where nothing is, the last answer stays
    browser.point(*at(browser, 65, 40))
    assert "rom" in text(browser, "readout")


def test_zoom_goes_down_to_a_page_and_back(browser: Browser, tmp_path: Path) -> None:
    show(browser, tmp_path, SMALL)
    browser.click(*at(browser, 6, 0))
    assert text(browser, "range") == "0x0 to 0x10000000 (256 MiB), a cell is 64 KiB"
    for _ in range(6):
        where = browser.evaluate(
            f"places[cells.findIndex(c => c.from <= {SHARED_GPA // PAGE} && {SHARED_GPA // PAGE} < c.to)]"
        )
        browser.click(*at(browser, *where))
    browser.point(
        *at(browser, *browser.evaluate(f"places[cells.findIndex(c => c.from === {SHARED_GPA // PAGE})]"))
    )
    assert (
        text(browser, "readout")
        == "0x503000 to 0x504000\n4 KiB: shared\nin a run 0x503000 to 0x504000 (4 KiB)"
    )
    for _ in range(9):
        browser.press("Escape")
    assert text(browser, "range") == "0x0 to 0x100000000 (4 GiB), a cell is 256 KiB"


def test_linear_and_arrows(browser: Browser, tmp_path: Path) -> None:
    show(browser, tmp_path, SMALL, layout="linear")
    browser.point(*at(browser, 20, 0))
    assert text(browser, "readout").startswith("0x500000 to 0x540000\n256 KiB\nshared: 4 KiB")
    browser.evaluate("$('hilbert').click()")
    browser.point(*at(browser, 6, 0))
    assert text(browser, "readout").startswith("0x500000 to 0x540000\n256 KiB\nshared: 4 KiB")
    browser.click(*at(browser, 6, 0))
    browser.press("ArrowRight")
    assert text(browser, "range").startswith("0x10000000 to 0x20000000 (256 MiB)")
    browser.press("ArrowLeft")
    assert text(browser, "range").startswith("0x0 to 0x10000000 (256 MiB)")


def test_the_legend_adds_up_and_shows_one_kind(browser: Browser, tmp_path: Path) -> None:
    show(browser, tmp_path, SMALL)
    items = browser.evaluate("[...document.querySelectorAll('#legend button')].map(item => item.textContent)")
    assert items == [
        "shared4 KiB, 1 page",
        "private1024 MiB, 262143 pages",
        "rom256 KiB, 64 pages",
        "hole3 GiB, 786368 pages",
    ]
    colour = "[...$('map').getContext('2d').getImageData(5, 5, 1, 1).data].slice(0, 3)"
    before = browser.evaluate(colour)
    browser.evaluate("document.querySelector('[data-kind=shared]').click()")
    assert min(browser.evaluate(colour)) > 200 > min(before)  # private memory is pale now
    browser.evaluate("document.querySelector('[data-kind=shared]').click()")
    assert browser.evaluate(colour) == before


def test_a_terabyte(browser: Browser, tmp_path: Path) -> None:
    show(browser, tmp_path, huge())
    assert text(browser, "range") == "0x0 to 0x10000000000 (1 TiB), a cell is 256 MiB"
    browser.point(*at(browser, 63, 0))  # where the curve ends
    assert text(browser, "readout") == (
        "0xfff0000000 to 0x10000000000\n256 MiB\nconflict: 4 KiB (0.00153 %)\nuntouched: 256 MiB (> 99.9 %)"
    )
    # one page in a cell of 65536 has its own stripe: red where the cell begins
    red = browser.evaluate("[...$('map').getContext('2d').getImageData(63 * pixels + 1, 6, 1, 1).data]")
    assert red[:3] == [0xD7, 0x26, 0x3D]


def test_no_network_and_no_error(browser: Browser, tmp_path: Path) -> None:
    show(browser, tmp_path, SMALL)
    browser.point(*at(browser, 3, 3))
    requests = [
        event["params"]["request"]["url"]
        for event in browser.events
        if event["method"] == "Network.requestWillBeSent"
    ]
    assert requests == [(tmp_path / "pages.html").as_uri()]
    assert not [event for event in browser.events if event["method"] == "Runtime.exceptionThrown"]


def test_a_guest_without_memory(browser: Browser, tmp_path: Path) -> None:
    show(browser, tmp_path, PageMap([]))
    browser.point(*at(browser, 0, 0))
    assert text(browser, "readout") == "Point at the map."
    assert not [event for event in browser.events if event["method"] == "Runtime.exceptionThrown"]
