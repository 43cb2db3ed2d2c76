"""LZO1X through the C library that QEMU and makedumpfile use for it, where it is installed (``liblzo2.so.2``).

There is no wheel of a Python module for it that is as fast. Calls let other threads run.
Source: lzo/lzo1x.h of liblzo2 2.10, whose ABI has been version 2 since 2005.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import lru_cache
from typing import Final

NAME: Final = "liblzo2.so.2"
PACKAGE: Final = "liblzo2-2"  # Debian's
_WORK_NBYTES: Final = 16384 * 8  # LZO1X_1_MEM_COMPRESS
_OK: Final = 0


class LzoError(Exception):
    """These bytes do not unpack; the message has the library's number."""


@lru_cache
def library() -> ctypes.CDLL:
    """The library, or OSError."""
    return ctypes.CDLL(NAME)


def new_compressor(most_nbytes: int) -> Callable[[bytes], bytes]:
    """A function for one thread that compresses up to ``most_nbytes`` (LZO1X-1)."""
    compress = library().lzo1x_1_compress
    work = ctypes.create_string_buffer(_WORK_NBYTES)
    out = ctypes.create_string_buffer(most_nbytes + most_nbytes // 16 + 64 + 3)  # what noise grows to
    nbytes = ctypes.c_size_t()
    nbytes_at = ctypes.byref(nbytes)

    def compressed(data: bytes) -> bytes:
        if len(data) > most_nbytes:
            raise ValueError(f"{len(data)} bytes, not {most_nbytes} at most")
        status = compress(data, ctypes.c_size_t(len(data)), out, nbytes_at, work)
        if status != _OK:
            raise LzoError(f"error {status}")
        return out.raw[: nbytes.value]

    return compressed


def decompress(data: bytes, most_nbytes: int) -> bytes:
    """What ``data`` unpacks to, at most ``most_nbytes``; LzoError for anything else, more included."""
    out = ctypes.create_string_buffer(most_nbytes)
    nbytes = ctypes.c_size_t(most_nbytes)
    # "safe": the library checks every read and write against these bounds
    status = library().lzo1x_decompress_safe(
        data, ctypes.c_size_t(len(data)), out, ctypes.byref(nbytes), None
    )
    if status != _OK:
        raise LzoError(f"error {status}")
    return out.raw[: nbytes.value]
