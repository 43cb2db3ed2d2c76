"""Data for people and for programs: aligned tables, JSON, text that cannot steer a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import click


def print_json(answer: Any) -> None:
    """One JSON document on stdout (docs/json.md)."""
    import json

    click.echo(json.dumps(answer, indent=2))


def hexadecimal(value: int | None) -> str | None:
    """An address, mask, policy or entry as JSON spells it; None stays None."""
    return None if value is None else f"0x{value:x}"


def printable(text: str) -> str:
    """Text from a guest or a VMM without control characters: it must not reach the terminal as commands."""
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in text)


def size(nbytes: int) -> str:
    """A size as people say it, exact where a unit divides it: ``2 MiB``, ``1.5 GiB``, ``100 bytes``."""
    for shift, unit in ((40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if nbytes >= 1 << shift:
            amount = nbytes / (1 << shift)
            return f"{int(amount)} {unit}" if amount == int(amount) else f"{amount:.1f} {unit}"
    return f"{nbytes} bytes"


def print_table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, indent: str = "") -> None:
    """Columns aligned by their widest cell; numbers are the caller's to format."""
    lines = [tuple(headings), *(tuple(printable(cell) for cell in row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        click.echo((indent + "  ".join(map(str.ljust, line, widths))).rstrip())


def print_facts(facts: Iterable[tuple[str, str]]) -> None:
    """``name: value`` lines, values aligned; without a name it is one more value."""
    known = [(f"{name}:" if name else "", printable(value)) for name, value in facts]
    width = max((len(name) for name, _ in known), default=0)
    for name, value in known:
        click.echo(f"{name:{width}}  {value}")
