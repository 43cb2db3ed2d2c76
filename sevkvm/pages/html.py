"""The picture as one HTML file without a network: hover tells address and kind, a click zooms in.

The file has every run, so that the last zoom shows single pages; of more than MOST_RUNS runs, the exact order within
blocks is given up (each block keeps how much of each kind it has), and the file says so.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from importlib.resources import files
from itertools import groupby
from typing import TYPE_CHECKING, Final

from sevkvm.abi.x86 import PAGE_NBYTES, PAGE_SHIFT
from sevkvm.pages.cells import ORDER, Run
from sevkvm.pages.svg import COLOURS

if TYPE_CHECKING:
    from sevkvm.pages.pagemap import PageMap

MOST_RUNS: Final = 200_000
_LETTERS: Final = dict(zip(ORDER, "ABCDEFGHI", strict=True))
_DIGITS: Final = "0123456789abcdefghijklmnopqrstuvwxyz"


def html(pages: PageMap, *, title: str, layout: str, most_runs: int = MOST_RUNS) -> str:
    """The file. ``title`` is anybody's text."""
    runs, block = _few_enough(pages, most_runs)
    data = {
        "title": title,
        "layout": layout,
        "kinds": [{"name": kind.value, "colour": COLOURS[kind]} for kind in ORDER],
        # a run is its kind's letter and its pages in base 36; the first begins at gpa 0
        "runs": "".join(f"{_LETTERS[kind]}{_base36(nbytes >> PAGE_SHIFT)}" for _, nbytes, kind in runs),
        "block": block,
    }
    # "</script>" and "<!--" in a title would end or hide the script
    text = json.dumps(data).replace("<", "\\u003c")
    page = files("sevkvm.pages").joinpath("picture.html").read_text("utf-8")
    return page.replace("/*DATA*/ null", text, 1)


def _few_enough(pages: PageMap, most: int) -> tuple[list[Run], int]:
    """The runs, and the size of a block in which their order is not told; PAGE_NBYTES if all is exact."""
    if len(pages) <= most:
        return list(pages.kinds()), PAGE_NBYTES
    *_, (_, end, _, _) = pages.stretches()
    block = PAGE_NBYTES
    while 16 * block * most < end:  # smaller ones would hardly do, and each attempt goes through all runs
        block *= 2
    while True:
        block *= 2
        runs = list(_take(_coarse(pages.kinds(), block), most + 1))
        if len(runs) <= most:
            return runs, block


def _take(runs: Iterable[Run], count: int) -> Iterator[Run]:
    for number, run in enumerate(runs):
        if number == count:
            return
        yield run


def _coarse(runs: Iterable[Run], block: int) -> Iterator[Run]:
    """Runs in which each kind comes once in a block, those of more than a block stay whole."""
    last: Run | None = None
    for _, pieces in groupby(_cut(runs, block), key=lambda run: run[0] // block):
        sums: dict[int, int] = {}
        first = -1
        for gpa, nbytes, kind in pieces:
            first = gpa if first < 0 else first
            rank = ORDER.index(kind)
            sums[rank] = sums.get(rank, 0) + nbytes
        for rank in sorted(sums):
            kind, nbytes = ORDER[rank], sums[rank]
            if last and last[2] is kind:
                last = (last[0], last[1] + nbytes, kind)
            else:
                if last:
                    yield last
                last = (first, nbytes, kind)
            first += nbytes
    if last:
        yield last


def _cut(runs: Iterable[Run], block: int) -> Iterator[Run]:
    """Runs cut at the edges of blocks, but for what fills whole blocks, which is one piece."""
    for gpa, nbytes, kind in runs:
        end = gpa + nbytes
        head = min(end, -(-gpa // block) * block)
        tail = max(head, end // block * block)
        for start, stop in ((gpa, head), (head, tail), (tail, end)):
            if start < stop:
                yield start, stop - start, kind


def _base36(number: int) -> str:
    digits = ""
    while number:
        number, digit = divmod(number, 36)
        digits = _DIGITS[digit] + digits
    return digits or "0"
