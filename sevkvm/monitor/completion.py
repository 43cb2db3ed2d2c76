"""What a half-typed word of a command line may become."""

from __future__ import annotations

from sevkvm.monitor.names import NAMES
from sevkvm.monitor.table import COMMANDS, INFO


def candidates(begun: str, word: str) -> list[str]:
    """``begun`` is the line before the word: a command's name, what ``info`` can tell, or a register."""
    if word.startswith("$"):
        return [f"${name}" for name in NAMES if name.startswith(word[1:])]
    before = begun.split()
    if before[:1] in (["help"], ["?"]):
        before = before[1:]
    if not before:
        return _starting(word, [name for command in COMMANDS for name in command.names.split("|")])
    if before == ["info"]:
        return _starting(word, [command.names for command in INFO])
    return []


def _starting(word: str, names: list[str]) -> list[str]:
    return sorted(f"{name} " for name in names if name.startswith(word))
