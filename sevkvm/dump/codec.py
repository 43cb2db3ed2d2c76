"""Compression of single pages, by the names that ``--compress`` takes."""

from __future__ import annotations

import contextlib
import importlib
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final

from sevkvm import errors
from sevkvm.abi import kdump
from sevkvm.abi.x86 import PAGE_NBYTES

_ISAL_LEVEL: Final = 1  # 2 is no smaller, for pages

Compress = Callable[[Sequence[bytes]], "list[bytes]"]
"""Pages in, each one compressed by itself."""


@dataclass(frozen=True)
class Codec:
    """``flag`` marks a page in the file; ``new`` makes a compressor for one thread."""

    name: str
    flag: int
    new: Callable[[], Compress]


def find_codec(name: str) -> Codec:
    """The codec, its library imported; UsageError that says what to install where there is none."""
    maker = _MAKERS.get(name)
    if maker is None:
        raise errors.UsageError(f"no compression {name}", help=f"known: {', '.join(NAMES)}")
    return maker()


def _none() -> Codec:
    return Codec("none", 0, lambda: list)


def _zlib() -> Codec:
    """ISA-L's deflate where it is installed: a third of the time, 6% larger; every reader of zlib reads it."""
    compress: Any = zlib.compress
    level = 1  # level 6 takes twice the time for 3% less
    with contextlib.suppress(ImportError):
        compress, level = importlib.import_module("isal.isal_zlib").compress, _ISAL_LEVEL
    return Codec(
        "zlib",
        kdump.DUMP_DH_COMPRESSED_ZLIB,
        lambda: lambda pages: [compress(page, level) for page in pages],
    )


def _zstd() -> Codec:
    zstandard = _need("zstandard", "zstd", "sevkvm[dump]")

    def new() -> Compress:
        compressor: Any = zstandard.ZstdCompressor(level=1)
        if not hasattr(compressor, "multi_compress_to_buffer"):  # its backend without C
            return lambda pages: [compressor.compress(page) for page in pages]
        # one call without the interpreter lock instead of one a page
        return lambda pages: (
            [frame.tobytes() for frame in compressor.multi_compress_to_buffer(list(pages), threads=0)]
            if pages
            else []
        )

    return Codec("zstd", kdump.DUMP_DH_COMPRESSED_ZSTD, new)


def _snappy() -> Codec:
    compress: Any = _need("cramjam", "snappy", "sevkvm[dump]").snappy.compress_raw
    return Codec(
        "snappy",
        kdump.DUMP_DH_COMPRESSED_SNAPPY,
        lambda: lambda pages: [bytes(compress(page)) for page in pages],
    )


def _lzo() -> Codec:
    from sevkvm.abi import lzo

    try:
        lzo.library()
    except OSError as error:
        raise errors.UsageError(
            f"--compress lzo needs the library {lzo.NAME}",
            help=f"install it (Debian: apt install {lzo.PACKAGE})",
        ) from error

    def new() -> Compress:
        compress = lzo.new_compressor(PAGE_NBYTES)
        return lambda pages: [compress(page) for page in pages]

    return Codec("lzo", kdump.DUMP_DH_COMPRESSED_LZO, new)


def _need(module: str, name: str, package: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise errors.UsageError(
            f"--compress {name} needs the Python module {module}", help=f"pip install '{package}'"
        ) from error


_MAKERS: Final[dict[str, Callable[[], Codec]]] = {
    "zlib": _zlib,
    "zstd": _zstd,
    "snappy": _snappy,
    "lzo": _lzo,
    "none": _none,
}
NAMES: Final = tuple(_MAKERS)
