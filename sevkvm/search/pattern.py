"""What is looked for: a string, bytes with gaps, or a regular expression over bytes.

``longest``: the most bytes of one match. The search looks at memory through a window; within this many bytes a match is
found wherever it lies, also across pages and reads. A regular expression's longer matches are cut there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from sevkvm import errors

LONGEST_REGEX: Final = 4096
LONGEST_LITERAL: Final = 64 << 10

_HEX_DIGITS: Final = frozenset("0123456789abcdefABCDEF")


class Finder(Protocol):
    """Finds matches in windows of memory.

    ``step``: the least number of new bytes worth a call. ``overlapping``: a match may begin inside another.
    """

    @property
    def longest(self) -> int:
        """The most bytes of one match."""
        ...

    @property
    def step(self) -> int:
        """See above."""
        ...

    @property
    def overlapping(self) -> bool:
        """See above."""
        ...

    def matches(self, window: bytes, start: int, limit: int) -> Iterator[tuple[int, int, str]]:
        """``(start, end, label)`` of the matches that begin in ``[start, limit)``, ascending, none of them empty.

        Right for every match if ``longest`` bytes follow ``limit``, or no byte of memory follows the window.
        """
        ...


@dataclass(frozen=True)
class Pattern:
    """A Finder of matches that do not overlap. ``literal``: plain bytes, which is faster; else ``regex``."""

    longest: int
    literal: bytes | None = None
    regex: re.Pattern[bytes] | None = None
    step: int = 1
    overlapping: bool = False

    def matches(self, window: bytes, start: int, limit: int) -> Iterator[tuple[int, int, str]]:
        """See Finder; there are no labels."""
        if start >= limit:
            return iter(())
        return self._find(window, start, limit) if self.literal else self._scan(window, start, limit)

    def _find(self, window: bytes, start: int, limit: int) -> Iterator[tuple[int, int, str]]:
        assert self.literal
        nbytes = len(self.literal)
        end = min(limit + nbytes - 1, len(window))
        while (start := window.find(self.literal, start, end)) >= 0:
            yield start, start + nbytes, ""
            start += nbytes

    def _scan(self, window: bytes, start: int, limit: int) -> Iterator[tuple[int, int, str]]:
        assert self.regex
        while start < limit:
            found = self.regex.search(window, start)
            if found is None or found.start() >= limit:
                return
            begin, end = found.span()
            if end - begin > self.longest:
                cut = self.regex.match(window, begin, begin + self.longest)
                end = cut.end() if cut else begin
            if end > begin:
                yield begin, end, ""
            start = max(end, begin + 1)


def string(text: str, *, ignore_case: bool = False) -> Pattern:
    """The text in UTF-8."""
    return _literal(text.encode(), ignore_case=ignore_case)


def utf16(text: str, *, ignore_case: bool = False) -> Pattern:
    """The text in little-endian UTF-16, as Windows and firmware keep it."""
    return _literal(text.encode("utf-16-le"), ignore_case=ignore_case)


def hexadecimal(text: str) -> Pattern:
    """Pairs of hexadecimal digits, blanks between them or not; ``??`` is any byte. UsageError for anything else."""
    digits = "".join(text.split())
    pairs = [digits[at : at + 2] for at in range(0, len(digits), 2)]
    for pair in pairs:
        if pair != "??" and not (len(pair) == 2 and set(pair) <= _HEX_DIGITS):
            raise errors.UsageError(
                f"'{pair}' is not a byte in hexadecimal",
                help="bytes are pairs of digits, such as 48 8b ?? 05, and ?? is any byte",
            )
    if pairs and set(pairs) == {"??"}:
        raise errors.UsageError("a pattern of ?? alone is found everywhere")
    if "??" not in pairs:
        return _literal(bytes.fromhex(digits))
    expression = b"".join(b"." if pair == "??" else re.escape(bytes.fromhex(pair)) for pair in pairs)
    return Pattern(_checked(len(pairs)), regex=re.compile(expression, re.DOTALL))


def regular_expression(text: str, *, ignore_case: bool = False) -> Pattern:
    """Python's regular expressions over bytes (``\\xff`` is a byte); UsageError for one that is none, or finds nothing.

    A match may be LONGEST_REGEX bytes long. ``.`` does not match a newline unless the expression begins with (?s).
    """
    try:
        regex = re.compile(text.encode(), re.IGNORECASE if ignore_case else 0)
    except (re.error, OverflowError, RecursionError) as error:
        raise errors.UsageError(f"'{text}' is not a regular expression: {error}") from None
    if regex.fullmatch(b""):
        raise errors.UsageError(
            f"'{text}' matches nothing at all, everywhere", help="let it match a byte at least"
        )
    return Pattern(LONGEST_REGEX, regex=regex)


def _literal(data: bytes, *, ignore_case: bool = False) -> Pattern:
    longest = _checked(len(data))
    if ignore_case and data.lower() != data.upper():
        return Pattern(longest, regex=re.compile(re.escape(data), re.IGNORECASE))
    return Pattern(longest, literal=data)


def _checked(nbytes: int) -> int:
    if not 0 < nbytes <= LONGEST_LITERAL:
        raise errors.UsageError(
            f"a pattern of {nbytes} bytes", help=f"1 to {LONGEST_LITERAL} can be looked for"
        )
    return nbytes
