"""The parts of a packet, taken apart strictly; and error answers."""

from __future__ import annotations

import re
from typing import Final

ADDRESS_END: Final = 1 << 64
UNKNOWN: Final = b""
"""The answer to a packet that we do not know: gdb then does without."""

OK: Final = b"OK"
CANNOT_ACCESS: Final = b"E0e"
"""EFAULT. Memory packets have no room for words: gdb would read them as digits."""

_HEX: Final = re.compile(rb"[0-9a-fA-F]{1,16}")


class Malformed(Exception):
    """A packet that is framed well and says nothing."""


def number(text: bytes) -> int:
    """Up to 16 hexadecimal digits."""
    if not _HEX.fullmatch(text):
        raise Malformed("not a number")
    return int(text, 16)


def numbers(text: bytes, count: int) -> list[int]:
    """``count`` numbers with commas between them."""
    parts = text.split(b",")
    if len(parts) != count:
        raise Malformed(f"not {count} numbers")
    return [number(part) for part in parts]


def hex_bytes(text: bytes) -> bytes:
    """Pairs of digits, nothing between them."""
    try:
        if b" " not in text:
            return bytes.fromhex(text.decode("ascii"))
    except ValueError:
        pass
    raise Malformed("not hexadecimal bytes")


def refusal(why: str) -> bytes:
    """An error answer in words, for people."""
    words = "".join(char if " " <= char <= "~" and char not in "#$}*" else " " for char in why)
    return b"E." + words[:400].encode("ascii")
