"""The table of a kernel that does not say where it is (Linux 4.6 to 5.19), looked for in its image by its shape."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Final

from sevkvm.errors import BadGuestData
from sevkvm.linux.kallsymsshape import ALPHABET, table_parts
from sevkvm.linux.tables import proved
from sevkvm.paging.walk import Walker

if TYPE_CHECKING:
    from sevkvm.linux.space import KernelSpace
    from sevkvm.linux.vmcoreinfo import VmcoreInfo

_SEARCH_NBYTES_MAX: Final = 64 << 20
_PIECES_MAX: Final = 1 << 14
_CHUNK_NBYTES: Final = 512 << 10
_HITS_MAX: Final = 16


def search_table(space: KernelSpace, info: VmcoreInfo) -> dict[str, int] | None:
    """The gva of each part of the table, by its name as VMCOREINFO has them later; None if it is not found.

    Reads the part of the kernel's image that is neither code nor beyond its read-only data: 2000 to 5000 pages.
    """
    start, end = info.symbols.get("_stext"), info.symbols.get("init_uts_ns")
    if start is None or end is None or not start < end:
        return None
    end = min(end, start + _SEARCH_NBYTES_MAX)
    for hit in islice(_alphabets(space, start, end), _HITS_MAX):
        try:
            return table_parts(space, hit)
        except BadGuestData:
            continue  # the alphabet in UTF-16 is not rare
    return None


def _alphabets(space: KernelSpace, start: int, end: int) -> Iterator[int]:
    """Where the alphabet is in memory that is not executable."""
    kept, kept_end = b"", 0
    for gva, nbytes in _data(space, start, end):
        try:
            data = space.read(gva, nbytes)
        except BadGuestData:
            continue
        if gva != kept_end:
            kept = b""
        data = kept + data
        base = gva - len(kept)
        at = data.find(ALPHABET)
        while at >= 0:
            yield base + at
            at = data.find(ALPHABET, at + 1)
        kept, kept_end = data[1 - len(ALPHABET) :], gva + nbytes


def _data(space: KernelSpace, start: int, end: int) -> Iterator[tuple[int, int]]:
    """``(gva, nbytes)`` of what is mapped and not executable, ascending, in chunks."""
    pieces = Walker(space.memory, space.form).pieces(start, end - start)
    first = last = 0
    for piece in islice(pieces, _PIECES_MAX):
        if proved(piece.translation, space.form.cbit_pos) is None or not piece.translation.nx:
            continue
        if piece.gva != last or last - first >= _CHUNK_NBYTES:
            if first < last:
                yield from _cut(first, last)
            first = piece.gva
        last = piece.gva + piece.nbytes
    yield from _cut(first, last)


def _cut(first: int, last: int) -> Iterator[tuple[int, int]]:
    for gva in range(first, last, _CHUNK_NBYTES):
        yield gva, min(_CHUNK_NBYTES, last - gva)
