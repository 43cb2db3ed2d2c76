"""Where the answers of ``sevkvm pages`` go: stdout, and files with pictures."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

from sevkvm.cli import pages_difference, pages_report
from sevkvm.cli.render import print_json
from sevkvm.cli.run import say

if TYPE_CHECKING:
    from sevkvm.cli.pages_report import Looked
    from sevkvm.dump.output import Target
    from sevkvm.pages.changes import Change


def draw(looked: Looked, name: str, target: Target, layout: str) -> None:
    """Write a picture; ``name`` is ``svg`` or ``html``."""
    title = f"sevkvm pages: {looked.name}"
    if name == "svg":
        from sevkvm.pages.svg import svg

        data = "".join(f"{line}\n" for line in svg(looked.pages, title=title, layout=layout)).encode()
    else:
        from sevkvm.pages.html import html

        data = html(looked.pages, title=title, layout=layout).encode()
    with target.open(len(data)) as sink:
        sink.write(data)


def show(looked: Looked, shape: str | None, layout: str, *, as_json: bool) -> None:
    """Print it; ``shape`` is ``list``, ``csv``, ``plot``, or None for the summary."""
    if as_json:
        for piece in pages_report.json_text(looked):
            sys.stdout.write(piece)
    elif shape == "list":
        _echo(pages_report.list_lines(looked.pages))
    elif shape == "csv":
        _echo(pages_report.csv_lines(looked.pages))
    elif shape == "plot":
        from sevkvm.cli.pages_plot import plot

        columns = shutil.get_terminal_size().columns
        _echo(plot(looked.pages, layout=layout, columns=columns, colour=_colour()))
    else:
        pages_report.print_summary(looked)


def show_changes(looked: Looked, found: list[Change], shape: str | None, *, as_json: bool) -> None:
    """Print what has changed; ``shape`` is ``list``, ``csv``, or None for the summary."""
    if as_json:
        print_json(pages_difference.changes_json(found, looked))
    elif shape == "list":
        _echo(pages_difference.change_list_lines(found))
    elif shape == "csv":
        _echo(pages_difference.change_csv_lines(found))
    elif found:
        pages_difference.print_changes(found)
    else:
        say("nothing has changed")


def _colour() -> bool:
    """A terminal, and nobody who wants it without colours (https://no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _echo(lines: Iterable[str]) -> None:
    for line in lines:
        click.echo(line)
