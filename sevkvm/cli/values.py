"""Numbers as engineers type them: 0x hex or decimal, sizes with K M G T, half-open ranges."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import click

# click's type became generic in 8.4; older ones cannot be subscripted.
if TYPE_CHECKING:
    IntType = click.ParamType[int]
    FloatType = click.ParamType[float]
    AnyType = click.ParamType[Any]
else:
    IntType = FloatType = AnyType = click.ParamType

ADDRESS_END = 1 << 64
MOST_SECONDS = 3600
_LEVELS = {"zero": 1, "cache": 2, "cache-private": 4, "user": 8, "free": 16}
_UNITS = {"K": 10, "M": 20, "G": 30, "T": 40}


class Range(NamedTuple):
    """Addresses from ``start`` up to, not including, ``end``."""

    start: int
    end: int

    @property
    def nbytes(self) -> int:
        """Its size."""
        return self.end - self.start


def parse_number(text: str) -> int:
    """A non-negative number, ``0x`` hex or decimal; ValueError says what is wrong."""
    digits, base = (text[2:], 16) if text[:2].lower() == "0x" else (text, 10)
    # int() alone would take signs, blanks, underscores and other scripts' digits.
    if not digits or not digits.isascii() or not digits.isalnum():
        raise ValueError(f"'{text}' is not a number such as 0x1000 or 4096")
    try:
        return int(digits, base)
    except ValueError:
        hex_like = base == 10 and all(c in "0123456789abcdefABCDEF" for c in digits)
        raise ValueError(
            f"'{text}' is not a number such as 0x1000 or 4096" + (f"; 0x{text}?" if hex_like else "")
        ) from None


def parse_nbytes(text: str) -> int:
    """A size: a number, or one with a unit (``64K``, ``2G``, ``1MiB``)."""
    body = text[:-2] if text[-2:].lower() == "ib" else text
    unit = body[-1:].upper()
    if unit in _UNITS and not text.lower().startswith("0x"):
        return parse_number(body[:-1]) << _UNITS[unit]
    return parse_number(text)


def parse_address(text: str) -> int:
    """An address below 2**64."""
    value = parse_number(text)
    if value >= ADDRESS_END:
        raise ValueError(f"'{text}' does not fit into 64 bits")
    return value


def parse_range(text: str) -> Range:
    """``START:END`` (END is not part of it) or ``START:+SIZE``; never empty."""
    first, colon, second = text.partition(":")
    if not colon:
        raise ValueError(f"'{text}' is not a range such as 0x1000:0x2000 or 1M:+64K")
    start = parse_nbytes(first)
    end = start + parse_nbytes(second[1:]) if second.startswith("+") else parse_nbytes(second)
    if end > ADDRESS_END:
        raise ValueError(f"'{text}' ends above 2**64")
    if end <= start:
        raise ValueError(f"'{text}' is empty: a range is START:END with START below END, or START:+SIZE")
    return Range(start, end)


class _AddressType(IntType):
    name = "address"

    def convert(self, value: str | int, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return parse_address(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class _SizeType(IntType):
    name = "size"

    def convert(self, value: str | int, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return parse_nbytes(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class _NumberType(IntType):
    name = "number"

    def __init__(self, least: int, most: int) -> None:
        self.least, self.most = least, most

    def convert(self, value: str | int, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            number = value if isinstance(value, int) else parse_number(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if not self.least <= number <= self.most:
            self.fail(f"{number} is not between {self.least} and {self.most}", param, ctx)
        return number


class _SecondsType(FloatType):
    name = "seconds"

    def convert(self, value: str | float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            seconds = float(value)
        except ValueError:
            seconds = 0.0
        if not 0 < seconds <= MOST_SECONDS:  # refuses NaN as well
            self.fail(f"'{value}' is not a number of seconds, above 0 and at most {MOST_SECONDS}", param, ctx)
        return seconds


class _RangeType(AnyType):
    name = "range"

    def convert(self, value: str | Range, param: click.Parameter | None, ctx: click.Context | None) -> Range:
        if isinstance(value, Range):
            return value
        try:
            return parse_range(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class _LevelType(IntType):
    name = "level"

    def convert(self, value: str | int, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        if value.isdecimal() and value.isascii() and int(value) < 2 * _LEVELS["free"]:
            return int(value)
        level = 0
        for name in value.split(","):
            if name not in _LEVELS:
                self.fail(f"'{name}' is none of {', '.join(_LEVELS)}, and no number up to 31", param, ctx)
            level |= _LEVELS[name]
        return level


ADDRESS = _AddressType()
LEVEL = _LevelType()
RANGE = _RangeType()
SECONDS = _SecondsType()
SIZE = _SizeType()


def number(least: int, most: int) -> IntType:
    """A number between ``least`` and ``most``, both inclusive."""
    return _NumberType(least, most)
