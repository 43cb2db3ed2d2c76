"""Raw files: nothing but memory. Without being told otherwise, the byte at offset N is the guest's byte at gpa N.

A raw file cannot tell holes from zeros: what its writer could not read, and what lies between two ranges of RAM,
reads as the zeros that the file has there. Whoever knows the ranges says them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sevkvm.dumpfile.contents import DumpContents
from sevkvm.dumpfile.spans import FlatStore, Span

if TYPE_CHECKING:
    from sevkvm.dumpfile.image import MappedFile


def open_raw(image: MappedFile, ranges: Sequence[tuple[int, int, int]] = ()) -> DumpContents:
    """A raw file; ``ranges`` are ``(gpa, nbytes, offset)`` as somebody told them."""
    told = [
        Span(gpa, nbytes, offset, f"range 0x{gpa:x}:0x{nbytes:x}:0x{offset:x}")
        for gpa, nbytes, offset in ranges
    ]
    return DumpContents("raw", image.nbytes, FlatStore(image, told or [Span(0, image.nbytes, 0, "the file")]))
