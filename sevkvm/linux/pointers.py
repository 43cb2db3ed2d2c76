"""The note through tables that are known: the kernel's data holds a pointer to it.

``vmcoreinfo_note`` and ``vmcoreinfo_data`` are pointers to page-aligned memory in the kernel's writable data: reading
that costs a few thousand pages at most, and of page-aligned kernel addresses there are only hundreds in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from struct import Struct
from typing import TYPE_CHECKING, Final

from sevkvm.errors import BadGuestData
from sevkvm.linux.ram import CHUNK_NBYTES
from sevkvm.linux.tables import proved
from sevkvm.linux.vmcoreinfo import HEAD_NBYTES, START_KERNEL_MAP, VmcoreInfo, extent, parse
from sevkvm.paging.walk import Walker

if TYPE_CHECKING:
    from sevkvm.linux.ram import Search
    from sevkvm.paging.form import PagingForm

IMAGE_NBYTES: Final = 1 << 30  # what a kernel image has for itself; modules follow
_PIECES_MAX: Final = 1 << 16  # 256 MiB by 4 KiB pages
_POINTERS_MAX: Final = 1 << 14
_WORD: Final = Struct("<Q")
_IS_ZERO: Final = bytes(value == 0 for value in range(256))
_LOW_NIBBLE_IS_ZERO: Final = bytes(value & 0xF == 0 for value in range(256))
_IS_FF: Final = bytes(value == 0xFF for value in range(256))


def maps_kernel(search: Search, form: PagingForm) -> bool:
    """Do these tables map anything where a kernel's image is?"""
    pieces = Walker(search.memory, form).pieces(START_KERNEL_MAP, IMAGE_NBYTES)
    return any(piece.gpa is not None for piece in islice(pieces, _PIECES_MAX))


def notes(search: Search, form: PagingForm, start_gva: int = START_KERNEL_MAP) -> Iterator[VmcoreInfo]:
    """VMCOREINFO that the kernel's data from ``start_gva`` on points to; ELF notes before bare text."""
    walker = Walker(search.memory, form)
    seen: set[int] = set()
    for gpa, nbytes in _writable(search, form, start_gva):
        data = search.peek(gpa, nbytes)
        fresh = set(page_pointers(data)) - seen
        if len(seen) + len(fresh) > _POINTERS_MAX:
            search.refuse("the kernel's data holds more pointers than any kernel's")
            return
        seen |= fresh
        found = [info for gva in sorted(fresh) for info in _note_at(search, walker, gva)]
        yield from sorted(found, key=lambda info: info.bare)


def page_pointers(data: bytes) -> Iterator[int]:
    """The aligned words that are page-aligned addresses of the kernel's half, below its image.

    All words are tested at once, as large integers made of one byte of each: the third of a second that a loop takes
    would be most of what a small dump costs. The top byte of a canonical kernel address is 0xff, with 5 levels too.
    """
    data = data[: len(data) & ~7]
    marks = [
        int.from_bytes(data[byte::8].translate(table), "little")
        for byte, table in ((0, _IS_ZERO), (1, _LOW_NIBBLE_IS_ZERO), (7, _IS_FF))
    ]
    found = (marks[0] & marks[1] & marks[2]).to_bytes(len(data) // 8, "little")
    at = found.find(1)
    while at >= 0:
        (word,) = _WORD.unpack_from(data, 8 * at)
        if word < START_KERNEL_MAP:
            yield word
        at = found.find(1, at + 1)


def _writable(search: Search, form: PagingForm, start_gva: int) -> Iterator[tuple[int, int]]:
    """``(gpa, nbytes)`` of the image's private writable memory in order of gva, in chunks."""
    start = end = 0
    pieces = Walker(search.memory, form).pieces(start_gva, START_KERNEL_MAP + IMAGE_NBYTES - start_gva)
    for number, piece in enumerate(pieces):
        if number == _PIECES_MAX:
            search.refuse("the kernel's image is mapped in more pieces than any kernel's")
            break
        gpa = proved(piece.translation, search.cbit_pos)
        if gpa is None or not piece.translation.writable:
            continue
        if gpa != end:
            yield from _cut(start, end)
            start = gpa
        end = gpa + piece.nbytes
    yield from _cut(start, end)


def _cut(start: int, end: int) -> Iterator[tuple[int, int]]:
    for gpa in range(start, end, CHUNK_NBYTES):
        yield gpa, min(CHUNK_NBYTES, end - gpa)


def _note_at(search: Search, walker: Walker, gva: int) -> Iterator[VmcoreInfo]:
    gpa = proved(walker.translate(gva), search.cbit_pos)
    if gpa is not None:
        yield from note_at(search, gpa)


def note_at(search: Search, gpa: int, head: bytes | None = None) -> Iterator[VmcoreInfo]:
    """The VMCOREINFO at the page at ``gpa``, if there is one; ``head``: its first bytes where they are known."""
    nbytes = extent(search.peek(gpa, HEAD_NBYTES) if head is None else head)
    if not nbytes:
        return
    data = search.peek(gpa, nbytes)
    if len(data) < nbytes:
        return
    try:
        yield parse(gpa, data)
    except BadGuestData as error:
        search.refuse(error.message)
