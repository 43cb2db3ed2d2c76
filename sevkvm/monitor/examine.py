"""QEMU's ``x`` and ``xp``: the same format letters, the same bytes on the screen.

Measured against QEMU 7.2 in tests/kvm/test_examine_qemu.py: 16 bytes a line, 8 with size b; every address 16
digits; ``d`` shows a sign only with size g; ``c`` shows single bytes, as many as count x size. A line of which
one byte cannot be read is not shown: QEMU says ``Cannot access memory`` at its start and stops, and so do we.
Not alike on purpose: no default is remembered from one call to the next, counts do not wrap at 32 bits, and
device registers are read only where that was asked for, each unit with one access.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Final

from sevkvm import errors
from sevkvm.abi.x86 import PAGE_NBYTES

Reader = Callable[[int, int], bytes]
"""``reader(address, nbytes)``: bytes from ``address``, fewer at the first one that cannot be read.

No request crosses a page.
"""

Registers = Callable[[int, int], bytes]
"""``registers(address, nbytes)``: one access to a device, where the reader had nothing; empty if none is there."""

_SIZES: Final = {"b": 1, "h": 2, "w": 4, "g": 8, "L": 8}
_STRUCT_CODES: Final = {1: "B", 2: "H", 4: "I", 8: "Q"}
_OCTAL_DIGITS: Final = {1: 3, 2: 6, 4: 11, 8: 22}
_DECIMAL_DIGITS: Final = {1: 3, 2: 5, 4: 10, 8: 20}
_FORMAT: Final = re.compile(r"/?([0-9]{0,18})([xduocibhwgL]*)(.?)", re.DOTALL)
_NAMED_CHARS: Final = {0x27: "\\'", 0x5C: "\\\\", 0x0A: "\\n", 0x0D: "\\r"}
_CHARS: Final = [
    f"'{_NAMED_CHARS.get(byte) or (chr(byte) if 32 <= byte <= 126 else f'{chr(92)}x{byte:02x}')}'"
    for byte in range(256)
]


@dataclass(frozen=True)
class ExamineFormat:
    """``count`` units of ``unit_nbytes`` each, shown as ``letter`` (one of x d u o c)."""

    count: int = 1
    letter: str = "x"
    unit_nbytes: int = 4

    @property
    def nbytes(self) -> int:
        """Guest memory to show."""
        return self.count * self.unit_nbytes

    @property
    def line_nbytes(self) -> int:
        """Guest memory in a full line."""
        return 8 if self.unit_nbytes == 1 else 16


def parse_format(text: str) -> ExamineFormat:
    """``/4xg``, ``16xb``, ``/c``, ...: a count, then letters in any order, the last of a kind wins.

    Raises UsageError for what QEMU refuses, and for ``i``.
    """
    match = _FORMAT.match(text)
    assert match is not None  # every part may be empty
    count, letters, bad = match.groups()
    if bad:
        raise errors.UsageError(
            f"invalid char in format: '{bad}'", help="/COUNT, then one of x d u o c, then one of b h w g"
        )
    if "i" in letters:
        raise errors.UsageError(
            "format i (instructions) is not supported here",
            help="sevkvm monitor -c 'x /4i ADDRESS' shows instructions",
        )
    default = ExamineFormat()
    sizes = [_SIZES[letter] for letter in letters if letter in _SIZES]
    kinds = [letter for letter in letters if letter not in _SIZES]
    return ExamineFormat(
        count=int(count) if count else default.count,
        letter=kinds[-1] if kinds else default.letter,
        unit_nbytes=sizes[-1] if sizes else default.unit_nbytes,
    )


class Examination:
    """The answer, a line at a time, read while it is shown: any count in constant memory.

    ``failed_at``: after the last line, the address of the line that could not be read, or None. The command line
    then exits with 6: the answer ends in a hole.
    """

    def __init__(
        self, reader: Reader, fmt: ExamineFormat, address: int, registers: Registers | None = None
    ) -> None:
        self._reader = reader
        self._registers = registers
        self._format = fmt
        self._address = address
        self.failed_at: int | None = None

    def __iter__(self) -> Iterator[str]:
        at = self._address
        for data in self.pieces():
            if data is None:
                self.failed_at = at
                yield f"{at:016x}: Cannot access memory"
                return
            yield f"{at:016x}: {render_units(data, self._format)}"
            at += len(data)

    def pieces(self) -> Iterator[bytes | None]:
        """The bytes of each line; None in place of the first that cannot be read, and nothing after."""
        end = self._address + self._format.nbytes
        block, used = b"", 0
        at = self._address  # where the next line starts
        while at < end:
            want = min(self._format.line_nbytes, end - at)
            if len(block) - used < want:
                block, used = self._refill(block[used:], at, want, end), 0
            if len(block) < want:
                yield None
                return
            yield block[used : used + want]
            used += want
            at += want

    def _refill(self, block: bytes, at: int, want: int, end: int) -> bytes:
        """``block`` (the bytes from ``at``) and what follows: to the end of a page, and at least ``want``."""
        while len(block) < want:
            start = at + len(block)
            nbytes = min(PAGE_NBYTES - start % PAGE_NBYTES, end - start)
            if start >= 1 << 64:
                break
            got = self._reader(start, nbytes) or self._register(start)
            if not got:
                break
            block += got
        return block

    def _register(self, address: int) -> bytes:
        """A unit that a device has; none for one that begins in memory."""
        unit = self._format.unit_nbytes
        if self._registers is None or (address - self._address) % unit:
            return b""
        return self._registers(address, unit)


def examine(
    reader: Reader, fmt: ExamineFormat, address: int, registers: Registers | None = None
) -> Examination:
    """The lines that QEMU's ``x`` (or ``xp``, that is the reader's affair) prints, without line ends."""
    return Examination(reader, fmt, address, registers)


def short_reads(read: Callable[[int, int], bytes]) -> Reader:
    """A reader from ``Guest.read_virtual`` or ``Guest.read_physical``, which raise for what cannot be read."""

    def reader(address: int, nbytes: int) -> bytes:
        try:
            return read(address, nbytes)
        except errors.MemoryFault:
            return b""  # a request lies within one page: none of it can be read

    return reader


def render_units(data: bytes, fmt: ExamineFormat) -> str:
    """The part of a line after the address."""
    if fmt.letter == "c":
        return " ".join([_CHARS[byte] for byte in data])
    if fmt.unit_nbytes == 1:
        return " ".join(map(_byte_texts(fmt.letter).__getitem__, data))
    return " ".join(_unit_texts(data, fmt.letter, fmt.unit_nbytes))


@cache
def _byte_texts(letter: str) -> list[str]:
    """Every byte as it is shown: drgn reads a guest's memory with /1024uxb, 128 lines a request."""
    return _unit_texts(bytes(range(256)), letter, 1)


def _unit_texts(data: bytes, letter: str, unit: int) -> list[str]:
    values = struct.unpack(f"<{len(data) // unit}{_STRUCT_CODES[unit]}", data)
    if letter == "x":
        return [f"0x{value:0{2 * unit}x}" for value in values]
    if letter == "o":
        width = _OCTAL_DIGITS[unit]
        return [f"{'0' * bool(value)}{value:o}".rjust(width) for value in values]
    if letter == "d" and unit == 8:
        values = struct.unpack(f"<{len(data) // 8}q", data)
    return [f"{value:{_DECIMAL_DIGITS[unit]}d}" for value in values]
