"""A reader of kdump files for tests: by struct and offsets of its own, slow and strict."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

PAGE = 4096


def zstd(data: bytes) -> bytes:
    import zstandard

    return zstandard.ZstdDecompressor().decompress(data)


def snappy(data: bytes) -> bytes:
    import cramjam

    return bytes(cramjam.snappy.decompress_raw(data))


def lzo(data: bytes) -> bytes:
    import lzokay

    return bytes(lzokay.decompress(data, PAGE))


DECOMPRESS: dict[int, Callable[[bytes], bytes]] = {
    0: bytes,
    1: zlib.decompress,
    2: lzo,
    4: snappy,
    0x20: zstd,
}


class KdumpFile:
    """``pages``: pfn to (bytes, file offset, flags); ``ram``: the pfns of the first bitmap."""

    def __init__(self, path: Path) -> None:
        data = self.data = path.read_bytes()
        assert data[:8] == b"KDUMP   "
        assert struct.unpack_from("<i", data, 8) == (6,)
        self.utsname = [data[12 + 65 * n : 12 + 65 * (n + 1)].rstrip(b"\0").decode() for n in range(6)]
        self.seconds, self.microseconds = struct.unpack_from("<qq", data, 408)
        self.flags, block, sub_blocks, bitmap_blocks, max_mapnr = struct.unpack_from("<5I", data, 424)
        (self.nr_cpus,) = struct.unpack_from("<I", data, 460)
        assert block == PAGE
        (self.phys_base,) = struct.unpack_from("<q", data, PAGE)
        self.vmcoreinfo = self.part(PAGE + 32)
        self.notes = self.part(PAGE + 48)
        assert struct.unpack_from("<Q", data, PAGE + 96) == (max_mapnr,)
        bitmaps = (1 + sub_blocks) * PAGE
        nbytes = bitmap_blocks * PAGE // 2
        assert (max_mapnr + 7) // 8 <= nbytes < (max_mapnr + 7) // 8 + PAGE
        self.ram = self.bits(bitmaps, nbytes)
        self.dumped = dumped = self.bits(bitmaps + nbytes, nbytes)
        assert set(dumped) <= set(self.ram)
        descs = bitmaps + bitmap_blocks * PAGE
        self.data_offset = -(-(descs + 24 * len(self.ram)) // PAGE) * PAGE
        self.pages = {pfn: self.page(descs + 24 * rank) for rank, pfn in enumerate(dumped)}

    def part(self, at: int) -> bytes:
        offset, nbytes = struct.unpack_from("<QQ", self.data, at)
        return self.data[offset : offset + nbytes]

    def bits(self, offset: int, nbytes: int) -> list[int]:
        bitmap = self.data[offset : offset + nbytes]
        return [8 * at + bit for at, byte in enumerate(bitmap) for bit in range(8) if byte >> bit & 1]

    def page(self, desc: int) -> tuple[bytes, int, int]:
        offset, size, flags, page_flags = struct.unpack_from("<QIIQ", self.data, desc)
        assert page_flags == 0
        assert self.data_offset <= offset <= offset + size <= len(self.data)
        page = DECOMPRESS[flags](self.data[offset : offset + size])
        assert len(page) == PAGE
        return page, offset, flags


def dumped_pfns(path: Path) -> list[int]:
    """The pfns of the second bitmap, of a file by anybody: its pages are not looked at."""
    file = KdumpFile.__new__(KdumpFile)
    file.data = path.read_bytes()
    _, _, sub_blocks, bitmap_blocks, _ = struct.unpack_from("<5I", file.data, 424)
    nbytes = bitmap_blocks * PAGE // 2
    return file.bits((1 + sub_blocks) * PAGE + nbytes, nbytes)
