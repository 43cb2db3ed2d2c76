"""kdump-compressed files: headers, notes and bitmaps. Versions 1 to 6, as makedumpfile and QEMU write them.

Source: as ``sevkvm.abi.kdump``; what versions before 6 lack, by the same documents.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from sevkvm import errors
from sevkvm.abi import kdump
from sevkvm.dumpfile.bitmap import PageBitmap
from sevkvm.dumpfile.contents import DumpContents
from sevkvm.dumpfile.kdump_store import KdumpStore, Layout
from sevkvm.dumpfile.notes import Note, cpus_of, is_live, read_notes, vmcoreinfo_of

if TYPE_CHECKING:
    from sevkvm.dumpfile.image import Image

_VERSION_AT: Final = 8
_STATUS_AT: Final = 424
_STATUS: Final = struct.Struct("<IiIII")  # status, block_size, sub_hdr_size, bitmap_blocks, max_mapnr
_SUB: Final = struct.Struct("<QiiQQ6Q3Q")
_OLDEST_WITH: Final = {"vmcoreinfo": 3, "notes": 4, "wide": 6}
_ZERO_PAGES_ONLY: Final = 1  # dump_level: nothing but pages of zeros was left out
_MOST_MAPNR: Final = 1 << 40  # 52 address bits


def open_kdump(image: Image, name: str = "kdump") -> DumpContents:
    """A kdump-compressed file; BadDump for what is none, or a broken one."""
    path = image.path
    head = image.take(0, _STATUS_AT + _STATUS.size, "the kdump header")
    (version,) = struct.unpack_from("<i", head, _VERSION_AT)
    if not 1 <= version <= kdump.VERSION:
        raise errors.BadDump(path, f"a kdump file of version {version}; 1 to {kdump.VERSION} are known")
    _, block, sub_blocks, bitmap_blocks, mapnr = _STATUS.unpack_from(head, _STATUS_AT)
    if block != kdump.BLOCK_NBYTES:
        raise errors.BadDump(path, f"its blocks are {block} bytes, not {kdump.BLOCK_NBYTES} as on x86")
    sub = _SUB.unpack(image.take(block, _SUB.size, "the kdump sub-header"))
    _, dump_level, split, start, end, *places = sub
    if version >= _OLDEST_WITH["wide"]:
        start, end, mapnr = places[6:9]
    if not 0 < mapnr <= _MOST_MAPNR:
        raise errors.BadDump(path, f"its highest page is number {mapnr}")
    bitmap_nbytes = bitmap_blocks * block // 2
    if bitmap_nbytes < -(-mapnr // 8):
        raise errors.BadDump(path, f"its bitmaps of {bitmap_nbytes} bytes are too short for {mapnr} pages")
    bitmaps_at = (1 + sub_blocks) * block
    ram, held = (
        PageBitmap(image.take(at, bitmap_nbytes, what))
        for at, what in (
            (bitmaps_at, "the bitmap of memory"),
            (bitmaps_at + bitmap_nbytes, "the bitmap of pages"),
        )
    )
    layout = Layout(
        ram,
        held,
        bitmaps_at + 2 * bitmap_nbytes,
        (start, min(end, mapnr)) if split else (0, mapnr),
        left_out_are_zeros=dump_level == _ZERO_PAGES_ONLY and not split,
    )
    notes = _notes(image, path, places, version)
    return DumpContents(
        name,
        image.nbytes,
        KdumpStore(image, layout),
        cpus_of(notes, path),
        vmcoreinfo_of(notes) or _text(image, places, version),
        live=is_live(notes),
        remarks=["this file is one of a set: it holds a part of the memory"] if split else [],
    )


def _notes(image: Image, path: str, places: list[int], version: int) -> list[Note]:
    offset, nbytes = places[2:4]
    if version < _OLDEST_WITH["notes"] or not nbytes:
        return []
    image.take(offset, nbytes, "the notes")
    return list(read_notes(image, path, offset, nbytes))


def _text(image: Image, places: list[int], version: int) -> bytes | None:
    """The VMCOREINFO that is no note."""
    offset, nbytes = places[:2]
    if version < _OLDEST_WITH["vmcoreinfo"] or not nbytes:
        return None
    return bytes(image.take(offset, nbytes, "the VMCOREINFO"))
