"""What ``sevkvm write`` is to write: bytes, numbers of a size, text, or a file, as bytes."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

from sevkvm.cli.values import parse_number
from sevkvm.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

MOST_NBYTES: Final = 64 << 20  # what is overwritten is kept to be shown
NUMBER_NBYTES: Final = {"word": 2, "long": 4, "quad": 8}


def parse_bytes(words: Sequence[str]) -> bytes:
    """Hexadecimal digits in pairs, with blanks between bytes or without; ValueError for anything else."""
    text = " ".join(words)
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise ValueError(f"'{text}' is not bytes in hexadecimal such as 'de ad be ef'") from None


def parse_numbers(words: Sequence[str], nbytes: int) -> bytes:
    """Each number as so many bytes, the lowest first; ValueError for one that does not fit."""
    data = b""
    for word in words:
        number = parse_number(word)
        if number >> 8 * nbytes:
            raise ValueError(f"{word} does not fit into {8 * nbytes} bits")
        data += number.to_bytes(nbytes, "little")
    return data


def parse_value(kind: str, words: Sequence[str]) -> bytes:
    """What ``kind`` makes of the words; ValueError."""
    if kind == "bytes":
        return parse_bytes(words)
    if kind == "string":
        if len(words) > 1:
            raise ValueError("the text is one argument: quote it")
        return "".join(words).encode(errors="surrogateescape")
    return parse_numbers(words, NUMBER_NBYTES[kind])


def read_file(path: str) -> bytes:
    """All of a file, ``-`` is stdin; UsageError for more than is kept, OSError."""
    if path == "-":
        data = sys.stdin.buffer.read(MOST_NBYTES + 1)
    else:
        with open(path, "rb") as file:
            data = file.read(MOST_NBYTES + 1)
    if len(data) > MOST_NBYTES:
        raise UsageError(
            f"{path} has more than {MOST_NBYTES >> 20} MiB",
            help="write it in pieces: one write keeps in mind what it overwrites",
        )
    return data
