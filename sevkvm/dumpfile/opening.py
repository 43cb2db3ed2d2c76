"""Which format a file has, and if it is no dump, what it looks like."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from sevkvm import errors
from sevkvm.abi.kdump import SIGNATURE
from sevkvm.abi.x86 import PAGE_NBYTES
from sevkvm.dumpfile.elf import open_elf
from sevkvm.dumpfile.flattened import MAGIC as FLATTENED_MAGIC
from sevkvm.dumpfile.flattened import FlattenedFile
from sevkvm.dumpfile.kdump import open_kdump
from sevkvm.dumpfile.lime import MAGIC as LIME_MAGIC
from sevkvm.dumpfile.lime import open_lime
from sevkvm.dumpfile.raw import open_raw

if TYPE_CHECKING:
    from sevkvm.dumpfile.contents import DumpContents
    from sevkvm.dumpfile.image import MappedFile

_OPENERS: Final[dict[str, Callable[[MappedFile], DumpContents]]] = {
    "elf": open_elf,
    "kdump": open_kdump,
    "kdump-flattened": lambda image: _flattened(image),
    "lime": open_lime,
}
FORMATS: Final = (*_OPENERS, "raw")
_MAGICS: Final = (
    (b"\x7fELF", "elf"),
    (SIGNATURE, "kdump"),
    (FLATTENED_MAGIC, "kdump-flattened"),
    (LIME_MAGIC, "lime"),
)

# Memory that a file tells of and does not hold is looked at page by page, or nearly so.
_PLAUSIBLE_NBYTES: Final = 1 << 40
_PLAUSIBLE_FACTOR: Final = 4096

_UNPACK = "unpack it first"
_CONVERT = "convert it first"
_OTHERS: Final = (
    (b"\x1f\x8b", "gzip data", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "zstd data", _UNPACK),
    (b"\xfd7zXZ\0", "xz data", _UNPACK),
    (b"BZh", "bzip2 data", _UNPACK),
    (b"\x04\x22\x4d\x18", "lz4 data", _UNPACK),
    (b"PK\x03\x04", "a zip archive", _UNPACK),
    (b"AVML", "an AVML file", "`avml-convert` makes a LiME file of it"),
    (b"DISKDUMP", "a diskdump of Linux 2.4 or 2.6", None),
    (b"QFI\xfb", "a qcow2 disk image", None),
    (b"QEVM", "a QEMU migration stream", "`dump-guest-memory` in QEMU's monitor writes a dump"),
    (b"LibvirtQemudSave", "a domain that libvirt saved", "`virsh dump --memory-only` writes a dump"),
    (b"PAGEDU64", "a Windows crash dump", None),
    (b"PAGEDUMP", "a Windows crash dump", None),
    (b"MDMP", "a Windows minidump", None),
    (b"HIBR", "a Windows hibernation file", _CONVERT),
)


def open_contents(
    image: MappedFile, file_format: str | None = None, ranges: Sequence[tuple[int, int, int]] = ()
) -> DumpContents:
    """The dump in a file, of a format out of FORMATS, or of the one that its first bytes tell.

    ``ranges``: ``(gpa, nbytes, offset)`` of a raw file. Raises BadDump for what is no dump, or a broken one.
    """
    contents = _opened(image, file_format or _recognized(image), ranges)
    claimed = sum(nbytes for _, nbytes in contents.store.ranges)
    if claimed > max(_PLAUSIBLE_NBYTES, _PLAUSIBLE_FACTOR * image.nbytes):
        raise errors.BadDump(image.path, f"{image.nbytes} bytes that tell of {claimed >> 40} TiB of memory")
    return contents


def _opened(image: MappedFile, told: str, ranges: Sequence[tuple[int, int, int]]) -> DumpContents:
    if told == "raw":
        return open_raw(image, ranges)
    if ranges:
        raise errors.UsageError(
            f"{image.path} is in {told} format, which tells by itself where its memory lies",
            help="--slot is for raw files",
        )
    return _OPENERS[told](image)


def _flattened(image: MappedFile) -> DumpContents:
    """A flattened file that makes a kdump file; others (makedumpfile can flatten ELF too) are told."""
    inner = FlattenedFile(image)
    start = bytes(inner.take(0, len(SIGNATURE), "the start of what was flattened"))
    if start != SIGNATURE:
        raise errors.BadDump(
            image.path,
            "a flattened file, but not of a kdump file",
            help="`makedumpfile -R` makes the file that it stands for",
        )
    return replace(open_kdump(inner, "kdump-flattened"), file_nbytes=image.nbytes)


def _recognized(image: MappedFile) -> str:
    start = bytes(image.take(0, min(64, image.nbytes), "its start"))
    for magic, name in _MAGICS:
        if start.startswith(magic):
            return name
    for magic, what, hint in _OTHERS:
        if start.startswith(magic):
            raise errors.BadDump(image.path, f"this looks like {what}, not like a dump", help=hint)
    if image.nbytes % PAGE_NBYTES:
        what = "text" if _is_text(start) else "nothing that is known here"
        raise errors.BadDump(
            image.path,
            f"this looks like {what}, not like a dump; {image.nbytes} bytes are no whole pages either",
            help="--file-format raw takes it as guest memory anyway",
        )
    return "raw"


def _is_text(start: bytes) -> bool:
    return all(32 <= byte < 127 or byte in b"\t\n\r" for byte in start)
