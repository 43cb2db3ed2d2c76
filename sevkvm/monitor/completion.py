"""What a half-typed word of a command line may become."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sevkvm.monitor.command import find
from sevkvm.monitor.names import NAMES
from sevkvm.monitor.table import COMMANDS, INFO

if TYPE_CHECKING:
    from sevkvm.linux.symbols import Symbols


def candidates(begun: str, word: str, symbols: Symbols | None = None, *, symbolic: bool = False) -> list[str]:
    """``begun`` is the line before the word: a command's name, what ``info`` can tell, a register or a symbol.

    ``symbols``: those that are known so far; ``symbolic``: they may stand wherever a number may.
    """
    if word.startswith("$"):
        return [f"${name}" for name in NAMES if name.startswith(word[1:])]
    before = begun.split()
    if before[:1] in (["help"], ["?"]):
        before = before[1:]
    if not before:
        return _starting(word, [name for command in COMMANDS for name in command.names.split("|")])
    if before == ["info"]:
        return _starting(word, [command.names for command in INFO])
    if symbols is not None and word and (before == ["addr"] or (symbolic and _takes_numbers(before[0]))):
        return [f"{name} " for name in symbols.beginning(word)]
    return []


def _takes_numbers(name: str) -> bool:
    command = find(COMMANDS, name)
    return command is not None and any(part.endswith((":l", ":i")) for part in command.spec.split(","))


def _starting(word: str, names: list[str]) -> list[str]:
    return sorted(f"{name} " for name in names if name.startswith(word))
