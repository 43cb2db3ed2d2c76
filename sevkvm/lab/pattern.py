"""Memory that says where it is: a byte read from the wrong place tells where it came from."""

from __future__ import annotations

from typing import Final

from sevkvm.abi.x86 import PAGE_MASK, PAGE_NBYTES

PATTERN_END: Final = 1 << 40  # there is room for ten hexadecimal digits

_BLOCK_OFFSETS = [b"%03x" % offset for offset in range(0, PAGE_NBYTES, 16)]


def pattern(gpa: int, nbytes: int) -> bytes:
    """Whole pages in which every 16-byte block says its own address: ``gpa=0x0000100010``."""
    if (gpa | nbytes) & PAGE_MASK or gpa + nbytes > PATTERN_END:
        raise ValueError("a pattern covers whole pages below 1 TiB")
    pages = []
    for number in range(gpa // PAGE_NBYTES, (gpa + nbytes) // PAGE_NBYTES):
        prefix = b"gpa=0x%07x" % number
        pages.append(prefix + prefix.join(_BLOCK_OFFSETS))
    return b"".join(pages)
