"""The expressions that QEMU's monitor takes as numbers: ``$pc+8``, ``(1+2)*3``, ``~0x10``, ``'a'``.

64 bits that wrap; ``*``, ``/`` and ``%`` are signed and round to zero, as in C. Looser binds later: ``* / %``, then
``& | ^``, then ``+ -``: QEMU's order, not C's. A number is decimal, ``0x`` hexadecimal or ``0`` octal. Measured against
QEMU 7.2 in tests/kvm/test_monitor_same.py; that one divides -2**63 by -1 and dies of it, this one wraps.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, NamedTuple

from sevkvm.monitor.problem import BadArgument

Registers = Callable[[str], "int | None"]
"""The value of a register by its name after the ``$``, 64 bits; None for a name that is none."""


class Values(NamedTuple):
    """What names stand for. ``symbol``: a bare name's value, or CommandProblem; None: there are none, as in QEMU."""

    register: Registers
    symbol: Callable[[str], int] | None = None


SPACES: Final = " \t\n\v\f\r"  # C's isspace()
_MASK: Final = (1 << 64) - 1
_DEPTH: Final = 64  # parentheses and signs: hostile lines must not exhaust the stack
_NUMBER: Final = re.compile(r"0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*")
_NAME: Final = re.compile(r"[A-Za-z0-9_.]*")
_NAME_LENGTH: Final = 127
_SYMBOL: Final = re.compile(r"[A-Za-z_.][A-Za-z0-9_.$]*")


def evaluate(text: str, at: int, values: Values) -> tuple[int, int]:
    """The value (0 <= value < 2**64) of the expression at ``text[at:]``, and where it ends, spaces skipped.

    Raises BadArgument in QEMU's words.
    """
    reader = _Reader(text, at, values)
    return reader.sum(), reader.at


class _Reader:
    """Recursive descent; ``at`` is the next character, spaces skipped."""

    def __init__(self, text: str, at: int, values: Values) -> None:
        self._text = text
        self._values = values
        self._depth = 0
        self.at = at
        self._skip()

    def sum(self) -> int:
        value = self._logic()
        while self._next() in ("+", "-"):
            operator = self._take()
            right = self._logic()
            value = (value + right if operator == "+" else value - right) & _MASK
        return value

    def _logic(self) -> int:
        value = self._product()
        while self._next() in ("&", "|", "^"):
            operator = self._take()
            right = self._product()
            value = value & right if operator == "&" else value | right if operator == "|" else value ^ right
        return value

    def _product(self) -> int:
        value = self._unary()
        while self._next() in ("*", "/", "%"):
            operator = self._take()
            value = _multiplied(operator, _signed(value), _signed(self._unary())) & _MASK
        return value

    def _unary(self) -> int:
        self._depth += 1
        if self._depth > _DEPTH:
            raise BadArgument("expression too deep")
        try:
            return self._operand() & _MASK
        finally:
            self._depth -= 1

    def _operand(self) -> int:
        first = self._next()
        if first == "":
            raise BadArgument("unexpected end of expression")
        if first in "+-~":
            self._take()
            value = self._unary()
            return value if first == "+" else -value if first == "-" else ~value
        if first == "(":
            self._take()
            value = self.sum()
            if self._next() != ")":
                raise BadArgument("')' expected")
            self._take()
            return value
        if first == "'":
            return self._character()
        if first == "$":
            return self._register()
        symbol = _SYMBOL.match(self._text, self.at) if self._values.symbol is not None else None
        if symbol is not None and self._values.symbol is not None:
            value = self._values.symbol(symbol[0])
            self._move(len(symbol[0]))
            return value
        return self._number(first)

    def _character(self) -> int:
        quoted = self._text[self.at + 1 : self.at + 3]
        if not quoted:
            raise BadArgument("character constant expected")
        if len(quoted) < 2 or quoted[1] != "'":
            raise BadArgument("missing terminating ' character")
        self._move(3)
        return ord(quoted[0])

    def _register(self) -> int:
        match = _NAME.match(self._text, self.at + 1)
        assert match is not None  # it matches nothing, too
        value = self._values.register(match[0][:_NAME_LENGTH])
        if value is None:
            raise BadArgument("unknown register")
        self._move(1 + len(match[0]))
        return value

    def _number(self, first: str) -> int:
        match = _NUMBER.match(self._text, self.at)
        if match is None:
            raise BadArgument(f"invalid char '{first}' in expression")
        digits = match[0]
        base = 16 if digits[1:2] in ("x", "X") else 8 if digits[0] == "0" else 10
        # 22 octal digits hold 64 bits; a line's worth of them is not converted
        value = int(digits, base) if len(digits.lstrip("0xX")) <= 22 else _MASK + 1
        if value > _MASK:
            raise BadArgument("number too large")
        self._move(len(digits))
        return value

    def _next(self) -> str:
        return self._text[self.at : self.at + 1]

    def _take(self) -> str:
        taken = self._next()
        self._move(1)
        return taken

    def _move(self, count: int) -> None:
        self.at += count
        self._skip()

    def _skip(self) -> None:
        while self._next() and self._next() in SPACES:
            self.at += 1


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _multiplied(operator: str, left: int, right: int) -> int:
    if operator == "*":
        return left * right
    if right == 0:
        raise BadArgument("division by zero")
    quotient = abs(left) // abs(right)
    if (left < 0) != (right < 0):
        quotient = -quotient
    return quotient if operator == "/" else left - quotient * right
