"""A progress bar on stderr, where somebody can see it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

Progress = Callable[[int, int], None]
_TELL_SECONDS = 5.0


def search_teller(say: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> Progress:
    """What to call with (pages read, pages at most): a search that takes long says so every few seconds."""
    due = _Due(clock)

    def advance(done: int, limit: int) -> None:
        if due():
            say(f"searching guest memory for its kernel: {done >> 8} MiB of at most {limit >> 8} MiB")

    return advance


def table_teller(
    say: Callable[[str], None], clock: Callable[[], float] = time.monotonic
) -> Callable[[int], None]:
    """What to call with how many page tables have been read: nobody knows how many there will be."""
    due = _Due(clock)

    def advance(count: int) -> None:
        if due():
            say(f"reading page tables: {count} so far")

    return advance


class _Due:
    """Called again and again, True every few seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._told_at: float | None = None

    def __call__(self) -> bool:
        now = self._clock()
        if self._told_at is None:
            self._told_at = now
        elif now - self._told_at >= _TELL_SECONDS:
            self._told_at = now
            return True
        return False


@contextmanager
def progress_bar(what: str, *, beside_stdout: bool = False) -> Iterator[Progress | None]:
    """Yield what to call with (bytes done, bytes in all); None when stderr is no terminal.

    ``beside_stdout``: the command prints meanwhile; then there is no bar either where stdout is a terminal too.
    The bar is drawn from the calls themselves, so that no thread of ours runs beside the one that owns ptrace.
    """
    if sys.stderr is None or not sys.stderr.isatty() or (beside_stdout and _is_terminal(sys.stdout)):
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    # stdout is data, and is not to be redirected to where the bar is
    bar = Bar(
        *columns, console=Console(stderr=True), auto_refresh=False, transient=True, redirect_stdout=False
    )
    task = bar.add_task(what, total=None)

    def advance(done: int, total: int) -> None:
        # the clock decides when the screen is drawn again: ten times a second at most
        now = bar.get_time()
        bar.update(task, completed=done, total=total)
        if done >= total or now - drawn[0] >= 0.1:
            drawn[0] = now
            bar.refresh()

    with bar:
        drawn = [bar.get_time()]
        yield advance


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty()
