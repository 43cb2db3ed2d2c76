"""The kdump-compressed file format, header version 6, as x86-64 readers know it.

Source: makedumpfile's IMPLEMENTATION document and diskdump_mod.h (1.7); QEMU's include/sysemu/dump.h writes the same.
Everything is little-endian. Blocks are pages of 4096 bytes: the header, the sub-header with what follows it, the
bitmap of RAM, the bitmap of pages in the file, a descriptor for each of these, page data.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from sevkvm.abi.x86 import PAGE_NBYTES

SIGNATURE: Final = b"KDUMP   "
VERSION: Final = 6
BLOCK_NBYTES: Final = PAGE_NBYTES
DUMP_DH_COMPRESSED_ZLIB: Final = 0x1
DUMP_DH_COMPRESSED_LZO: Final = 0x2
DUMP_DH_COMPRESSED_SNAPPY: Final = 0x4
DUMP_DH_COMPRESSED_ZSTD: Final = 0x20

DESC: Final = struct.Struct("<QIIQ")  # page_desc: offset, size, flags, page_flags
SUB_HEADER_NBYTES: Final = 104
_UTS_FIELD: Final = 65  # __NEW_UTS_LEN + 1
# disk_dump_header: signature, version, utsname, (padding,) timestamp, then status .. nr_cpus
_HEADER: Final = struct.Struct("<8si390s6xqq10I")
# kdump_sub_header: phys_base, dump_level, split, start_pfn, end_pfn, then offset and size of vmcoreinfo, notes and
# eraseinfo, then start_pfn_64, end_pfn_64, max_mapnr_64
_SUB_HEADER: Final = struct.Struct("<QiiQQ6Q3Q")


@dataclass(frozen=True)
class Utsname:
    """``struct new_utsname``: at most 64 bytes each."""

    sysname: str = ""
    nodename: str = ""
    release: str = ""
    version: str = ""
    machine: str = "x86_64"
    domainname: str = ""

    NBYTES = 6 * _UTS_FIELD

    def pack(self) -> bytes:
        """The 390 bytes; longer fields are cut."""
        fields = (self.sysname, self.nodename, self.release, self.version, self.machine, self.domainname)
        return b"".join(
            field.encode("ascii", "replace")[: _UTS_FIELD - 1].ljust(_UTS_FIELD, b"\0") for field in fields
        )

    @classmethod
    def unpack(cls, data: bytes) -> Utsname:
        """From 390 bytes of guest memory; what is not ASCII becomes ``?``."""
        parts = (data[at : at + _UTS_FIELD].partition(b"\0")[0] for at in range(0, cls.NBYTES, _UTS_FIELD))
        return cls(*(part.decode("ascii", "replace").replace("\ufffd", "?") for part in parts))


@dataclass(frozen=True)
class Header:
    """What the first block says. ``flags``: the compression the file may use; ``bitmap_blocks``: of both bitmaps."""

    utsname: Utsname
    timestamp_us: int
    flags: int
    sub_header_blocks: int
    bitmap_blocks: int
    max_mapnr: int
    nr_cpus: int

    def pack(self) -> bytes:
        """One block."""
        seconds, microseconds = divmod(self.timestamp_us, 1_000_000)
        old_max_mapnr = min(self.max_mapnr, 0xFFFF_FFFF)  # the sub-header has it in 64 bits
        head = _HEADER.pack(
            *(SIGNATURE, VERSION, self.utsname.pack(), seconds, microseconds, self.flags, BLOCK_NBYTES),
            *(self.sub_header_blocks, self.bitmap_blocks, old_max_mapnr),
            *(
                0,
                0,
                0,
                0,
                self.nr_cpus,
            ),  # total_ram_blocks, device_blocks, written_blocks, current_cpu: unused
        )
        return head.ljust(BLOCK_NBYTES, b"\0")


@dataclass(frozen=True)
class SubHeader:
    """What follows the first block. ``phys_base``: where the kernel's image starts in physical memory, less what its
    link address says; it may be negative. Offsets are of the file; a size of 0 means that there is none.
    ``dump_level``: what was left out, as in makedumpfile's ``-d``.
    """

    phys_base: int
    max_mapnr: int
    vmcoreinfo: tuple[int, int]
    notes: tuple[int, int]
    dump_level: int = 0

    def pack(self) -> bytes:
        """104 bytes."""
        phys_base = self.phys_base & 0xFFFF_FFFF_FFFF_FFFF
        places = (*self.vmcoreinfo, *self.notes, 0, 0)
        return _SUB_HEADER.pack(phys_base, self.dump_level, 0, 0, 0, *places, 0, 0, self.max_mapnr)
