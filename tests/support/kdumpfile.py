"""kdump-compressed files built byte by byte, right or wrong, and flattened: what a reader of dumps is given."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Mapping

PAGE = 4096


def bitmap(pfns: Iterable[int], nbytes: int) -> bytes:
    bits = bytearray(nbytes)
    for pfn in pfns:
        bits[pfn // 8] |= 1 << pfn % 8
    return bytes(bits)


def kdump(
    pages: Mapping[int, bytes],
    *,
    left_out: Iterable[int] = (),
    notes: bytes = b"",
    vmcoreinfo: bytes = b"",
    flags: Mapping[int, int] = {},
    packed: Mapping[int, bytes] = {},
    descs: Mapping[int, bytes] = {},
    **header: int,
) -> bytes:
    """``pages`` by pfn, each packed with zlib; ``left_out``: pfns of RAM that are not in the file.

    ``flags``, ``packed``, ``descs``: by pfn, what to say instead. ``header``: ``version`` ``block`` ``mapnr``
    ``bitmap_blocks`` ``dump_level`` ``split`` ``start`` ``end``.
    """
    ram = {*pages, *left_out}
    mapnr = max(ram) + 1
    bitmap_nbytes = -(-mapnr // (8 * PAGE)) * PAGE
    sub_nbytes = 104 + len(notes) + len(vmcoreinfo)
    sub_blocks = -(-sub_nbytes // PAGE)
    head = b"KDUMP   " + struct.pack("<i", header.get("version", 6)) + bytes(390 + 6 + 16)
    head += struct.pack(
        "<IiIII5I",
        1,
        header.get("block", PAGE),
        sub_blocks,
        header.get("bitmap_blocks", 2 * bitmap_nbytes // PAGE),
        header.get("mapnr", mapnr) & 0xFFFF_FFFF,
        *(0, 0, 0, 0, 1),
    )
    notes_at, text_at = PAGE + 104, PAGE + 104 + len(notes)
    sub = struct.pack(
        "<QiiQQ6Q3Q",
        0,
        header.get("dump_level", 0),
        header.get("split", 0),
        *(0, 0),
        *(text_at if vmcoreinfo else 0, len(vmcoreinfo), notes_at if notes else 0, len(notes), 0, 0),
        *(header.get("start", 0), header.get("end", 0), header.get("mapnr", mapnr)),
    )
    here = sorted(pfn for pfn in pages if not header.get("split") or header["start"] <= pfn < header["end"])
    out = bytearray(head.ljust(PAGE, b"\0"))
    out += (sub + notes + vmcoreinfo).ljust(sub_blocks * PAGE, b"\0")
    out += bitmap(ram, bitmap_nbytes) + bitmap(pages, bitmap_nbytes)
    data_at = len(out) + 24 * len(here)
    table, data = bytearray(), bytearray()
    for pfn in here:
        stored = packed.get(pfn, zlib.compress(pages[pfn]))
        told = struct.pack("<QIIQ", data_at + len(data), len(stored), flags.get(pfn, 1), 0)
        table += descs.get(pfn, told)
        data += stored
    return bytes(out + table + data)


def flattened(writes: Iterable[tuple[int, bytes]], *, end: bool = True) -> bytes:
    """The writes ``(offset, data)`` in makedumpfile's flattened format."""
    head = struct.pack(">16sqq", b"makedumpfile", 1, 1).ljust(4096, b"\0")
    body = b"".join(struct.pack(">qq", offset, len(data)) + data for offset, data in writes)
    return head + body + (struct.pack(">qq", -1, -1) if end else b"")
