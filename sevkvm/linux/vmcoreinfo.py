"""The VMCOREINFO note: what a Linux kernel says of itself, parsed as the hostile input that it is.

Source: Linux kernel/crash_core.c (v6.1; vmcore_info.c since v6.9), arch/x86/kernel/crash_core_64.c and
Documentation/admin-guide/kdump/vmcoreinfo.rst. The kernel keeps the text twice, each at the start of a page: bare
(``vmcoreinfo_data``), and as an ELF note (``vmcoreinfo_note``).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from sevkvm.abi.x86 import PAGE_NBYTES
from sevkvm.errors import BadGuestData

HEAD_NBYTES: Final = 48  # of a page: tells whether it is worth parsing
TEXT_NBYTES_MAX: Final = 4 * PAGE_NBYTES  # the kernel's buffer is one page
START_KERNEL_MAP: Final = (
    0xFFFF_FFFF_8000_0000  # where x86-64 kernels are linked; phys_base is relative to it
)

_NAME: Final = b"VMCOREINFO\0"
_HEADER: Final = struct.Struct("<III12s")  # namesz, descsz, type, the name padded to a multiple of 4
_MARK: Final = b"OSRELEASE="
_RELEASE_NBYTES_MAX: Final = 64  # __NEW_UTS_LEN
# by age, newest first
_TOP_TABLES: Final = ("swapper_pg_dir", "init_top_pgt", "init_level4_pgt")
_TEXT: Final = re.compile(rb"(?:[\x20-\x7e]+\n)+")
_NAMED: Final = re.compile(r"(SYMBOL|NUMBER)\((\w{1,64})\)")
_HEX: Final = re.compile(r"[0-9a-f]{1,16}")
_NUMBER: Final = re.compile(r"-?[0-9]{1,20}|0x[0-9a-f]{1,16}")


@dataclass(frozen=True)
class VmcoreInfo:
    """A kernel's own description. Nothing in it is checked against memory; ``linux.tables`` does that.

    gpa: the page it starts at. bare: it is the kernel's text, not the ELF note made of it. values: each line's, by
    its key (``SYMBOL(...)`` and all). symbols: gva by name. phys_base, sme_mask: None where the kernel does not say.
    """

    gpa: int
    bare: bool
    text: str
    values: Mapping[str, str]
    osrelease: str
    symbols: Mapping[str, int]
    numbers: Mapping[str, int]
    swapper_gva: int
    kernel_offset: int

    @property
    def build_id(self) -> str | None:
        """The kernel's, as hexadecimal digits."""
        return self.values.get("BUILD-ID")

    @property
    def levels(self) -> int:
        """Of its page tables: 4, or 5."""
        return 5 if self.numbers.get("pgtable_l5_enabled") else 4

    @property
    def phys_base(self) -> int | None:
        """What to add to a kernel symbol's offset from START_KERNEL_MAP for its gpa; may be negative."""
        return self.numbers.get("phys_base")

    @property
    def sme_mask(self) -> int | None:
        """The C-bit as the kernel knows it; 0 without encryption."""
        return self.numbers.get("sme_mask")

    @property
    def root_gpa(self) -> int | None:
        """Where the kernel's top table should be; not checked."""
        if self.phys_base is None:
            return None
        return self.swapper_gva - START_KERNEL_MAP + self.phys_base

    @property
    def crashed(self) -> bool:
        """The kernel wrote down when it crashed."""
        return "CRASHTIME" in self.values


def extent(head: bytes) -> int:
    """How many bytes of a page that starts with ``head`` (HEAD_NBYTES) to parse; 0 if it is no VMCOREINFO."""
    if head.startswith(_MARK):
        return PAGE_NBYTES
    if head[_HEADER.size :].startswith(_MARK):
        namesz, descsz, kind, name = _HEADER.unpack_from(head)
        if namesz == len(_NAME) and kind == 0 and name.startswith(_NAME) and descsz <= TEXT_NBYTES_MAX:
            return _HEADER.size + int(descsz)
    return 0


def parse(gpa: int, data: bytes) -> VmcoreInfo:
    """The VMCOREINFO in ``data``, ``extent()`` bytes at ``gpa``; BadGuestData for anything no kernel writes."""
    bare = data.startswith(_MARK)
    raw = data.partition(b"\0")[0] if bare else data[_HEADER.size :].rstrip(b"\0")
    if len(raw) > TEXT_NBYTES_MAX or not raw.startswith(_MARK) or not _TEXT.fullmatch(raw):
        raise BadGuestData(f"gpa 0x{gpa:x}: not the text of a VMCOREINFO note")
    text = raw.decode("ascii")
    values: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition("=")
        if values.setdefault(key, value) != value:
            raise BadGuestData(f"gpa 0x{gpa:x}: the note says {key[:80]} twice, and differently")
    symbols, numbers = _named(values)
    release = values["OSRELEASE"]
    if not 0 < len(release) <= _RELEASE_NBYTES_MAX:
        raise BadGuestData(f"gpa 0x{gpa:x}: the note's OSRELEASE is {len(release)} characters long")
    if values.get("PAGESIZE") != str(PAGE_NBYTES):
        raise BadGuestData(f"gpa 0x{gpa:x}: the note's PAGESIZE is not {PAGE_NBYTES}")
    swapper = next((symbols[name] for name in _TOP_TABLES if name in symbols), None)
    if swapper is None:
        raise BadGuestData(f"gpa 0x{gpa:x}: the note does not say where swapper_pg_dir is")
    offset = values.get("KERNELOFFSET", "0")
    if not _HEX.fullmatch(offset):
        raise BadGuestData(f"gpa 0x{gpa:x}: the note's KERNELOFFSET is no number")
    return VmcoreInfo(gpa, bare, text, values, release, symbols, numbers, swapper, int(offset, 16))


def _named(values: Mapping[str, str]) -> tuple[dict[str, int], dict[str, int]]:
    """SYMBOL() and NUMBER() lines; one that is not a number is left to whoever needs it and misses it."""
    symbols: dict[str, int] = {}
    numbers: dict[str, int] = {}
    for key, value in values.items():
        named = _NAMED.fullmatch(key)
        if named is None:
            continue
        if named[1] == "SYMBOL" and _HEX.fullmatch(value):
            symbols[named[2]] = int(value, 16)
        elif named[1] == "NUMBER" and _NUMBER.fullmatch(value):
            numbers[named[2]] = int(value, 16 if value.startswith("0x") else 10)
    return symbols, numbers
