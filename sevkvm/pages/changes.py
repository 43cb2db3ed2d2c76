"""What became of a guest's pages between two moments."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from sevkvm.pages.pagemap import PageKind


class Change(NamedTuple):
    """``nbytes`` at ``gpa`` were ``before`` and are ``after``; HOLE is memory that was not there, or is no more."""

    gpa: int
    nbytes: int
    before: PageKind
    after: PageKind


def changes(
    before: Iterable[tuple[int, int, PageKind]], after: Iterable[tuple[int, int, PageKind]]
) -> Iterator[Change]:
    """Compare two classifications, ``(gpa, nbytes, kind)`` ascending; what neither tells of is a hole in both."""
    last: Change | None = None
    for change in _aligned(_endless(before), _endless(after)):
        if change.before is change.after:
            continue
        if last and last.gpa + last.nbytes == change.gpa and last[2:] == change[2:]:
            last = last._replace(nbytes=last.nbytes + change.nbytes)
            continue
        if last:
            yield last
        last = change
    if last:
        yield last


_END = 1 << 64


def _endless(runs: Iterable[tuple[int, int, PageKind]]) -> Iterator[tuple[int, PageKind]]:
    """``(end, kind)`` without gaps, up to 2**64."""
    position = 0
    for gpa, nbytes, kind in runs:
        if gpa > position:
            yield gpa, PageKind.HOLE
        position = gpa + nbytes
        yield position, kind
    yield _END, PageKind.HOLE


def _aligned(
    before: Iterator[tuple[int, PageKind]], after: Iterator[tuple[int, PageKind]]
) -> Iterator[Change]:
    position = 0
    (before_end, was), (after_end, now) = next(before), next(after)
    while position < _END:
        end = min(before_end, after_end)
        if end > position:
            yield Change(position, end - position, was, now)
        position = end
        if before_end == position < _END:
            before_end, was = next(before)
        if after_end == position < _END:
            after_end, now = next(after)
