"""LiME: a header and the bytes of each range, one after the other. Registers have no place in it.

Source: the LiME project's documentation of its format, version 1.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from sevkvm import errors
from sevkvm.dumpfile.contents import DumpContents
from sevkvm.dumpfile.spans import FlatStore, Span

if TYPE_CHECKING:
    from sevkvm.dumpfile.image import MappedFile

MAGIC: Final = b"EMiL"
_HEADER: Final = struct.Struct("<4sIQQ8x")  # the end is inclusive
_VERSION: Final = 1
_MOST_RANGES: Final = 1 << 20


def open_lime(image: MappedFile) -> DumpContents:
    """A LiME file; BadDump for what is none."""
    return DumpContents("lime", image.nbytes, FlatStore(image, list(_spans(image))))


def _spans(image: MappedFile) -> Iterator[Span]:
    at = 0
    for number in range(_MOST_RANGES):
        if at >= image.nbytes:
            return
        what = f"LiME range {number}"
        magic, version, first, last = _HEADER.unpack(image.take(at, _HEADER.size, f"the header of {what}"))
        if magic != MAGIC or version != _VERSION:
            raise errors.BadDump(
                image.path, f"no LiME header of version 1 at file offset 0x{at:x}, where {what} should begin"
            )
        if last < first:
            raise errors.BadDump(
                image.path, f"{what} ends at gpa 0x{last:x}, before it begins at 0x{first:x}"
            )
        yield Span(first, last + 1 - first, at + _HEADER.size, what)
        at += _HEADER.size + last + 1 - first
    raise errors.BadDump(image.path, f"it has more than {_MOST_RANGES} ranges")
