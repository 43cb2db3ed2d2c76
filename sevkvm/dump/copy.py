"""Move guest memory into a format's intake along a layout; what cannot be read becomes a hole, never an invention."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from sevkvm import native
from sevkvm.abi import x86
from sevkvm.dump.pieces import Hole, HoleReason, Piece
from sevkvm.dump.reader import EXCLUDED, PageMap, PageReader

if TYPE_CHECKING:
    from sevkvm.dump.intake import Intake
    from sevkvm.dump.plan import Layout
    from sevkvm.dump.reader import Memory

Progress = Callable[[int, int], None]
"""Called with guest bytes dealt with (read or given up) and their total."""


class Copier:
    """One dump's copy loop. ``copied_nbytes`` counts what was read; ``holes`` what was not, ascending."""

    def __init__(self, memory: Memory, page_map: PageMap, intake: Intake, progress: Progress | None) -> None:
        self._reader = PageReader(memory)
        self._page_map = page_map
        self._intake = intake
        self._progress = progress
        self._done = 0
        self._total = 0
        self.copied_nbytes = 0
        self.holes: list[Hole] = []

    def copy(self, layout: Layout) -> None:
        """Hand every piece over, byte by byte or as a loss."""
        self._total = layout.copied_nbytes
        for placed in layout.placed:
            self._intake.start(placed)
            self._copy_piece(placed.piece)

    def _copy_piece(self, piece: Piece) -> None:
        at = piece.gpa
        to_address = piece.address - piece.gpa
        for gpa, nbytes, private, kind in self._runs(piece):
            if gpa > at:
                self._hole(at + to_address, gpa - at, HoleReason.SKIPPED)
            if kind == EXCLUDED:
                self._intake.lose(nbytes)
                self._advance(nbytes)
            else:
                self._copy_run(gpa, gpa + nbytes, private, to_address)
            at = gpa + nbytes
        if at < piece.gpa + piece.nbytes:
            self._hole(at + to_address, piece.gpa + piece.nbytes - at, HoleReason.SKIPPED)

    def _runs(self, piece: Piece) -> Iterator[tuple[int, int, bool, str]]:
        if piece.private is not None:
            yield piece.gpa, piece.nbytes, piece.private, ""
            return
        end = piece.gpa + piece.nbytes
        for gpa, nbytes, private, kind in self._page_map.runs(piece.gpa, end):
            start, stop = max(gpa, piece.gpa), min(gpa + nbytes, end)
            if start < stop:
                yield start, stop - start, private, kind

    def _copy_run(self, gpa: int, end: int, private: bool, to_address: int) -> None:
        reader = self._reader
        while gpa < end:
            want = min(end - gpa, len(reader.buffer))
            got = reader.read(gpa, want, private, ahead=end - gpa - want)
            got -= got % self._intake.unit
            self._deliver(got)
            gpa += got
            if got == want:
                continue
            resume, every_page_tried = reader.next_readable(gpa, end, private)
            reason = HoleReason.UNREADABLE if every_page_tried else HoleReason.UNREADABLE_SAMPLED
            self._hole(gpa + to_address, resume - gpa, reason)
            gpa = resume

    def _deliver(self, nbytes: int) -> None:
        """Hand over the first bytes of the buffer, pages that were read as zero as such."""
        view = memoryview(self._reader.buffer)[:nbytes]
        for start, stop, zero in _zero_runs(view):
            if zero:
                self._intake.zeros(stop - start)
            else:
                self._intake.write(view[start:stop])
        self.copied_nbytes += nbytes
        self._advance(nbytes)

    def _hole(self, address: int, nbytes: int, reason: HoleReason) -> None:
        self._intake.lose(nbytes)
        last = self.holes[-1] if self.holes else None
        if last is not None and last.address + last.nbytes == address and last.reason == reason:
            self.holes[-1] = Hole(last.address, last.nbytes + nbytes, reason)
        else:
            self.holes.append(Hole(address, nbytes, reason))
        self._advance(nbytes)

    def _advance(self, nbytes: int) -> None:
        self._done += nbytes
        if self._progress is not None:
            self._progress(self._done, self._total)


def _zero_runs(buffer: memoryview) -> Iterator[tuple[int, int, bool]]:
    """Split it into runs of ``(start, stop, all zero)``; a part of a page counts as data."""
    start = at = 0
    for number, npages in enumerate(native.zero_runs(buffer)):
        at = start + npages * x86.PAGE_NBYTES
        if number % 2:
            yield start, at, True
        elif npages:
            if at + x86.PAGE_NBYTES > len(buffer):
                break  # a part of a page follows: one run with it
            yield start, at, False
        start = at
    if start < len(buffer):
        yield start, len(buffer), False
