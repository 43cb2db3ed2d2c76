"""Every command of the monitor, and ``help``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from sevkvm.monitor import about, addresses, control, dumping, listings, memory, registers, saving, symbols
from sevkvm.monitor.command import Command, find
from sevkvm.monitor.expression import SPACES
from sevkvm.monitor.problem import CommandProblem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sevkvm.monitor.arguments import Arguments
    from sevkvm.monitor.monitor import Monitor


class Found(NamedTuple):
    """``command`` is None for a name that is none; its name ends at ``end`` of the line."""

    command: Command | None
    end: int


def lookup(line: str) -> Found:
    """The command that a line begins with; ``info`` alone is the list of what it can tell."""
    command, end = _named(COMMANDS, line, 0)
    if command is not None and command.names == "info":
        below, below_end = _named(INFO, line, end)
        if line[end:].strip(SPACES):
            return Found(below, below_end)
    return Found(command, end)


def _named(commands: tuple[Command, ...], line: str, at: int) -> tuple[Command | None, int]:
    """A name ends at a space or at the slash of a format."""
    while at < len(line) and line[at] in SPACES:
        at += 1
    end = at
    while end < len(line) and line[end] not in SPACES and line[end] != "/":
        end += 1
    return find(commands, line[at:end]), end


def show_help(monitor: Monitor, given: Arguments) -> Iterator[str]:
    """All commands, or one."""
    words = given.texts.get("name", "").split()
    if not words:
        yield from (command.usage for command in COMMANDS)
        return
    command = find(COMMANDS, words[0])
    if command is None:
        raise CommandProblem(f"unknown command: '{words[0]}'")
    if command.names != "info":
        yield command.usage
    elif len(words) == 1:
        yield from _info_usages(INFO)
    else:
        below = find(INFO, words[1])
        if below is None:
            raise CommandProblem(f"unknown command: 'info {words[1]}'")
        yield from _info_usages((below,))


def info(monitor: Monitor, given: Arguments) -> Iterator[str]:
    """The list of what there is."""
    return _info_usages(INFO)


def _info_usages(commands: tuple[Command, ...]) -> Iterator[str]:
    return (f"info {command.usage}" for command in commands)


def _sorted(*commands: Command) -> tuple[Command, ...]:
    return tuple(sorted(commands, key=lambda command: command.names))


INFO: Final = _sorted(*about.COMMANDS, *listings.COMMANDS, *registers.COMMANDS)
COMMANDS: Final = _sorted(
    *memory.COMMANDS,
    *addresses.COMMANDS,
    *control.COMMANDS,
    *saving.COMMANDS,
    *dumping.COMMANDS,
    *symbols.COMMANDS,
    Command("help|?", "name:S?", "[cmd]", "show the help", show_help),
    Command("info", "", "[subcommand]", "show various information about the system state", info),
)
