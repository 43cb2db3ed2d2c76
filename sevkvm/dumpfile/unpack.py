"""Pages unpacked: one page out, whatever its packed bytes promise."""

from __future__ import annotations

import importlib
import zlib
from collections.abc import Callable
from typing import Any, Final

from sevkvm import errors
from sevkvm.abi import kdump
from sevkvm.abi.x86 import PAGE_NBYTES


class DamagedPage(Exception):
    """These bytes do not unpack to a page; the message says why."""


def unpack_page(data: bytes, flags: int) -> bytes:
    """The page; DamagedPage, or SevKvmError where the library that could unpack it is not installed."""
    unpack = _UNPACKERS.get(flags & _COMPRESSED)
    if unpack is None:
        raise DamagedPage(f"its compression (flags 0x{flags:x}) is not known")
    page = unpack(data)
    if len(page) != PAGE_NBYTES:
        raise DamagedPage(f"it unpacks to {len(page)} bytes")
    return page


def _zlib(data: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(data, PAGE_NBYTES + 1)
    except zlib.error as error:
        raise DamagedPage(f"zlib says: {error}") from None


def _zstd(data: bytes) -> bytes:
    zstandard = _need("zstandard", "zstd", "sevkvm[dump]")
    try:
        promised = zstandard.frame_content_size(data)  # -1: it does not say
        if promised > PAGE_NBYTES:
            raise DamagedPage(f"it promises {promised} bytes")
        page: bytes = zstandard.ZstdDecompressor().decompress(data, max_output_size=PAGE_NBYTES)
        return page
    except zstandard.ZstdError as error:
        raise DamagedPage(f"zstd says: {error}") from None


def _snappy(data: bytes) -> bytes:
    if data[:2] != _SNAPPY_PAGE:
        raise DamagedPage("snappy promises something else than a page")
    cramjam = _need("cramjam", "snappy", "sevkvm[dump]")
    try:
        return bytes(cramjam.snappy.decompress_raw(data))
    except cramjam.DecompressionError as error:
        raise DamagedPage(f"snappy says: {error}") from None


def _lzo(data: bytes) -> bytes:
    from sevkvm.abi import lzo

    try:
        return lzo.decompress(data, PAGE_NBYTES)
    except lzo.LzoError as error:
        raise DamagedPage(f"lzo says: {error}") from None
    except OSError as error:
        raise errors.SevKvmError(
            f"the dump's pages are compressed with lzo, for which the library {lzo.NAME} is needed",
            help=f"install it (Debian: apt install {lzo.PACKAGE})",
        ) from error


def _need(module: str, name: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise errors.SevKvmError(
            f"the dump's pages are compressed with {name}, for which the Python module {module} is needed",
            help=f"pip install '{package}'",
        ) from error


_SNAPPY_PAGE: Final = b"\x80\x20"  # 4096 as the variable-length number that a snappy block begins with
_UNPACKERS: Final[dict[int, Callable[[bytes], bytes]]] = {
    0: bytes,
    kdump.DUMP_DH_COMPRESSED_ZLIB: _zlib,
    kdump.DUMP_DH_COMPRESSED_LZO: _lzo,
    kdump.DUMP_DH_COMPRESSED_SNAPPY: _snappy,
    kdump.DUMP_DH_COMPRESSED_ZSTD: _zstd,
}
_COMPRESSED: Final = sum(_UNPACKERS)
