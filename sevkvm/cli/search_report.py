"""A match, for people and for programs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from sevkvm.cli.render import hexadecimal, printable

if TYPE_CHECKING:
    from sevkvm.search.scanner import Match

_SHOWN_NBYTES = 64
_LINE_NBYTES = 16


def text_lines(match: Match, space: str, gpa: int | None, context: int) -> Iterator[str]:
    """Address(es) and the match as text, then the bytes around it if any are wanted."""
    where = f"0x{match.address:016x}" + (f" gpa 0x{gpa:x}" if space == "gva" and gpa is not None else "")
    more = "..." if len(match.data) > _SHOWN_NBYTES else ""
    label = f"{printable(match.label)}: " if match.label else ""
    yield f"{where}: {label}{_text(match.data[:_SHOWN_NBYTES])}{more}"
    if context:
        yield from hexdump(match.address - len(match.before), match.before + match.data + match.after)


def hexdump(address: int, data: bytes) -> Iterator[str]:
    """Lines of 16 bytes that begin at multiples of 16, indented by two."""
    first = address & -_LINE_NBYTES
    for line in range(first, address + len(data), _LINE_NBYTES):
        start, end = max(line, address), min(line + _LINE_NBYTES, address + len(data))
        part = data[start - address : end - address]
        cells = (
            ["  "] * (start - line) + [f"{byte:02x}" for byte in part] + ["  "] * (line + _LINE_NBYTES - end)
        )
        columns = " ".join(cells[:8]) + "  " + " ".join(cells[8:])
        yield f"  {line:016x}  {columns}  |{' ' * (start - line)}{_dotted(part)}|"


def json_line(match: Match, space: str, gpa: int | None) -> str:
    """One object; bytes as hexadecimal digits."""
    import json

    return json.dumps(
        {
            "address_space": space,
            "address": hexadecimal(match.address),
            "gpa": hexadecimal(gpa),
            "size": len(match.data),
            "bytes": match.data.hex(),
            "rule": match.label or None,
            "before": match.before.hex(),
            "after": match.after.hex(),
        }
    )


def _text(data: bytes) -> str:
    """Printable ASCII as it is, anything else escaped: a guest's bytes must not reach the terminal as commands."""
    return "".join(
        "\\\\" if byte == 0x5C else chr(byte) if 32 <= byte < 127 else f"\\x{byte:02x}" for byte in data
    )


def _dotted(data: bytes) -> str:
    return "".join(chr(byte) if 32 <= byte < 127 else "." for byte in data)
