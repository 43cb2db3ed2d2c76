"""The arguments of a command line, read the way QEMU's monitor reads them.

``spec`` is a comma-separated list of ``name:type``: ``/`` a format; ``l`` a 64-bit expression, ``i`` a 32-bit one;
``s`` a string, ``F`` a file name; ``S`` the rest of the line; ``-f`` a flag. A ``?`` after l, i, s, F, S makes it
optional. An expression goes on as long as it can: ``memsave 0 16 /path/f`` divides 16 by something, which is why file
names after numbers need quotes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from sevkvm.monitor.expression import SPACES, Values, evaluate
from sevkvm.monitor.problem import BadArgument

_SIZES: Final = {"b": 1, "h": 2, "w": 4, "g": 8, "L": 8}
_KINDS: Final = "oduxic"
_ESCAPES: Final = {"n": "\n", "r": "\r", "\\": "\\", "'": "'", '"': '"'}
_MOST_COUNT: Final = (1 << 31) - 1


@dataclass
class Defaults:
    """The format and unit size (bytes) of the last command that named them."""

    letter: str = "x"
    unit_nbytes: int = 4


@dataclass(frozen=True)
class Format:
    """``/COUNT LETTER SIZE``; ``letter`` is one of x d u o c i."""

    count: int
    letter: str
    unit_nbytes: int


@dataclass
class Arguments:
    """What was given, by name; an optional one that was not is not there, a flag is True or not there."""

    numbers: dict[str, int] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    flags: set[str] = field(default_factory=set)
    format: Format = Format(1, "x", 4)


def parse(command: str, spec: str, line: str, values: Values, defaults: Defaults) -> Arguments:
    """``line`` is what follows the command's name (``command`` is how messages call it). Raises BadArgument."""
    reader = _Reader(command, line, values, defaults)
    todo = [part.rpartition(":")[::2] for part in spec.split(",") if part]
    for index, (name, kind) in enumerate(todo):
        later = {kind for _, kind in todo[index + 1 :]}
        reader.read(name, kind, later)
    reader.finish()
    return reader.arguments


class _Reader:
    def __init__(self, command: str, line: str, values: Values, defaults: Defaults) -> None:
        self._command = command
        self._line = line
        self._values = values
        self._defaults = defaults
        self._at = 0
        self.arguments = Arguments()

    def read(self, name: str, kind: str, later: set[str]) -> None:
        """The next argument; ``later`` are the kinds that may follow."""
        self._skip()
        if kind == "/":
            self.arguments.format = self._format()
        elif kind[0] == "-":
            self._flag(name, kind, later)
        elif kind.endswith("?") and not self._line[self._at :]:
            return
        elif kind[0] in "li":
            self._number(name, kind[0])
        elif kind[0] == "S":
            self.arguments.texts[name] = self._line[self._at :]
            self._at = len(self._line)
        else:
            self._text(name, "filename" if kind[0] == "F" else "string")

    def finish(self) -> None:
        """Nothing may be left."""
        self._skip()
        if self._line[self._at :]:
            raise BadArgument(f"{self._command}: extraneous characters at the end of line")

    def _flag(self, name: str, kind: str, later: set[str]) -> None:
        if self._peek() != "-":
            return
        letter = self._line[self._at + 1 : self._at + 2]
        if letter == kind[1]:
            self.arguments.flags.add(name)
            self._at += 2
        elif f"-{letter}" not in later:
            raise BadArgument(f"{self._command}: unsupported option -{letter}")

    def _number(self, name: str, kind: str) -> None:
        value, self._at = evaluate(self._line, self._at, self._values)
        if kind == "i" and value >> 32:
            raise BadArgument(f"'{self._command}' has failed: integer is for 32-bit values")
        self.arguments.numbers[name] = value

    def _format(self) -> Format:
        defaults = self._defaults
        count, letter, size = 1, "", 0
        if self._peek() == "/":
            self._at += 1
            digits = ""
            while self._peek().isascii() and self._peek().isdigit():
                digits += self._next()
            # QEMU's count wraps in 32 bits
            count = min(int(digits[:18]), _MOST_COUNT) if digits else 1
            while self._peek() and self._peek() in _KINDS + "bhwgL":
                each = self._next()
                if each in _KINDS:
                    letter = each
                else:
                    size = _SIZES[each]
            if self._peek() and self._peek() not in SPACES:
                raise BadArgument(f"invalid char in format: '{self._peek()}'")
            letter = letter or defaults.letter
            if letter != "i":
                defaults.unit_nbytes = size or defaults.unit_nbytes
            defaults.letter = letter
        return Format(count, letter or defaults.letter, defaults.unit_nbytes)

    def _text(self, name: str, what: str) -> None:
        problem = BadArgument(f"{self._command}: {what} expected")
        if not self._peek():
            raise problem
        text = ""
        if self._peek() != '"':
            while self._peek() and self._peek() not in SPACES:
                text += self._next()
        else:
            self._at += 1
            while (each := self._next()) != '"':
                if each == "\\":
                    escape = self._next()
                    each = _ESCAPES.get(escape, "")
                if not each:
                    raise problem
                text += each
        self.arguments.texts[name] = text

    def _peek(self) -> str:
        return self._line[self._at : self._at + 1]

    def _next(self) -> str:
        each = self._peek()
        self._at += 1
        return each

    def _skip(self) -> None:
        while self._peek() and self._peek() in SPACES:
            self._at += 1
