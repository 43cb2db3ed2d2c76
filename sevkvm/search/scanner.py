"""Matches in memory that arrives piece by piece. Pure: no I/O here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from sevkvm.search.pattern import Finder

_LOOK_BEHIND: Final = 256  # what \b and (?<=...) may look at before a match


class Match(NamedTuple):
    """``data`` at ``address``; ``before`` and ``after`` are as much of the wanted context as there is.

    ``label``: what matched, where a search is for many things; else empty.
    """

    address: int
    data: bytes
    before: bytes
    after: bytes
    label: str = ""


class Scanner:
    """Feed it ascending memory; bytes that touch are searched across, and nothing is across a gap.

    ``context``: bytes wanted around a match. Keeps one window: what was fed last, and as much before it as a match
    that is still open, its context and look-behind need.
    """

    def __init__(self, pattern: Finder, context: int = 0) -> None:
        self._pattern = pattern
        self._context = context
        self._reach = pattern.longest + context
        self._keep = max(context, _LOOK_BEHIND)
        self._window = b""
        self._address = 0  # of the window's first byte
        self._next = 0  # where in the window the search goes on

    @property
    def start(self) -> int:
        """No match that is still to come begins below it."""
        return self._address + self._next

    def feed(self, address: int, data: bytes) -> Iterator[Match]:
        """The matches that are certain now."""
        if address != self._address + len(self._window):
            yield from self.flush()
            self._address = address
        self._window += data
        limit = len(self._window) - self._reach
        if limit - self._next < self._pattern.step:
            return
        yield from self._search(limit)
        spent = self._next - self._keep
        if spent > 0:
            self._window = self._window[spent:]
            self._address += spent
            self._next -= spent

    def flush(self) -> Iterator[Match]:
        """The rest: no byte follows."""
        yield from self._search(len(self._window))
        self._address += len(self._window)
        self._window, self._next = b"", 0

    def _search(self, limit: int) -> Iterator[Match]:
        window, context = self._window, self._context
        for start, end, label in self._pattern.matches(window, self._next, limit):
            if not self._pattern.overlapping:
                self._next = end
            yield Match(
                self._address + start,
                window[start:end],
                window[max(start - context, 0) : start],
                window[end : end + context],
                label,
            )
        self._next = max(self._next, limit)
