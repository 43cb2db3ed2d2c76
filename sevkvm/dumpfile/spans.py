"""Guest memory that lies flat in a file: which part of it is where."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from sevkvm import errors
from sevkvm.abi.x86 import MAX_PHYS_BIT
from sevkvm.dumpfile.contents import Missing

if TYPE_CHECKING:
    from sevkvm.dumpfile.image import MappedFile

GPA_END: Final = 1 << MAX_PHYS_BIT
_MOST_CLASHES: Final = 1 << 20
_COMPARE_NBYTES: Final = 1 << 20
_ASK_NBYTES: Final = (
    64 << 10
)  # from here on it is worth a system call to learn that all of it is a hole of the file


class Span(NamedTuple):
    """``nbytes`` of guest memory at ``gpa``, at ``offset`` of the file; ``what`` names it in errors."""

    gpa: int
    nbytes: int
    offset: int
    what: str

    @property
    def end(self) -> int:
        """First gpa past it."""
        return self.gpa + self.nbytes


class FlatStore:
    """The store of formats that keep memory as it is: ELF, LiME, raw."""

    def __init__(self, image: MappedFile, spans: Iterable[Span], missing: Iterable[Missing] = ()) -> None:
        self._image = image
        inside, cut_off = _cut(spans, image)
        self.spans = _disjoint(inside, image)
        self._starts = [span.gpa for span in self.spans]
        self._missing = _not_held([*missing, *cut_off], self.spans)

    @property
    def ranges(self) -> Sequence[tuple[int, int]]:
        """See Store."""
        held = [(span.gpa, span.end) for span in self.spans]
        return union([*held, *((gap.gpa, gap.gpa + gap.nbytes) for gap in self._missing)])

    def readinto(self, gpa: int, buffer: memoryview) -> int:
        """See Store."""
        done, view = 0, self._image.view
        while done < len(buffer):
            index = bisect_right(self._starts, gpa + done) - 1
            if index < 0 or gpa + done >= self.spans[index].end:
                break
            span = self.spans[index]
            skip = gpa + done - span.gpa
            nbytes, offset = min(span.nbytes - skip, len(buffer) - done), span.offset + skip
            if nbytes >= _ASK_NBYTES and self._image.is_hole(offset, nbytes):
                buffer[done : done + nbytes] = bytes(nbytes)
            else:
                buffer[done : done + nbytes] = view[offset : offset + nbytes]
            done += nbytes
        return done

    def why_missing(self, gpa: int) -> str:
        """See Store."""
        index = bisect_right(self._missing, gpa, key=lambda gap: gap.gpa) - 1
        if index >= 0 and gpa < self._missing[index].gpa + self._missing[index].nbytes:
            return self._missing[index].why
        return "the dump holds nothing there"

    def missing(self) -> Sequence[Missing]:
        """See Store."""
        return self._missing


def union(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Half-open ranges, in any order, as ascending disjoint ``(start, nbytes)``."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        elif start < end:
            merged.append((start, end))
    return [(start, end - start) for start, end in merged]


def _cut(spans: Iterable[Span], image: MappedFile) -> tuple[list[Span], list[Missing]]:
    """The parts that lie in the file, and those beyond its end."""
    inside: list[Span] = []
    beyond: list[Missing] = []
    for span in dict.fromkeys(spans):
        if span.end > GPA_END:
            raise errors.BadDump(
                image.path, f"{span.what} is at gpa 0x{span.gpa:x}:+0x{span.nbytes:x}: no processor has that"
            )
        held = max(0, min(span.nbytes, image.nbytes - span.offset))
        if held:
            inside.append(span._replace(nbytes=held))
        if held < span.nbytes:
            why = f"the file is cut off at 0x{image.nbytes:x}: {span.what} goes on to 0x{span.offset + span.nbytes:x}"
            beyond.append(Missing(span.gpa + held, span.nbytes - held, why))
    return inside, beyond


def _disjoint(spans: list[Span], image: MappedFile) -> list[Span]:
    """Ascending spans without overlaps; where two hold the same gpa, they must hold the same bytes.

    Work is bounded: by the number of clashes, and by comparing no more than four times the file.
    """
    found: list[Span] = []
    ends: list[int] = []
    budget, clashes = 4 * image.nbytes, 0
    for span in sorted(spans):
        at = span.gpa
        for other in found[bisect_right(ends, at) :]:
            stop = min(span.end, other.end)
            clashes += 1
            here, there = span.offset + at - span.gpa, other.offset + at - other.gpa
            if here != there:
                budget -= stop - at
                _same_bytes(image, span, other, (here, there, stop - at), budget)
            if clashes > _MOST_CLASHES or budget < 0:
                raise errors.BadDump(image.path, "its segments overlap each other without end")
            at = stop
        if at < span.end:
            found.append(Span(at, span.end - at, span.offset + at - span.gpa, span.what))
            ends.append(span.end)
    return found


def _same_bytes(
    image: MappedFile, span: Span, other: Span, places: tuple[int, int, int], budget: int
) -> None:
    here, there, nbytes = places
    if budget < 0:
        return
    for at in range(0, nbytes, _COMPARE_NBYTES):
        size = min(_COMPARE_NBYTES, nbytes - at)
        if bytes(image.view[here + at : here + at + size]) != bytes(
            image.view[there + at : there + at + size]
        ):
            gpa = span.gpa + here - span.offset
            raise errors.BadDump(
                image.path,
                f"{other.what} and {span.what} overlap from gpa 0x{gpa:x} on, and hold different bytes there",
                help="a dump of virtual memory that was made of a running guest can do so",
            )


def _not_held(missing: list[Missing], spans: list[Span]) -> list[Missing]:
    """``missing`` without what some span does hold after all, ascending and disjoint."""
    ends = [span.end for span in spans]
    found: list[Missing] = []
    done = 0
    for gap in sorted(missing):
        at, end = max(gap.gpa, done), gap.gpa + gap.nbytes
        for span in spans[bisect_right(ends, at) :]:
            if span.gpa >= end:
                break
            if at < span.gpa:
                found.append(Missing(at, span.gpa - at, gap.why))
            at = max(at, span.end)
        if at < end:
            found.append(Missing(at, end - at, gap.why))
        done = max(done, end)
    return found
