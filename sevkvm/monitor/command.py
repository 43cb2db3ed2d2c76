"""A command: its names, arguments, help and what it does."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from sevkvm.monitor.arguments import Arguments
    from sevkvm.monitor.monitor import Monitor

Handler = Callable[["Monitor", "Arguments"], Iterable[str]]


class Command(NamedTuple):
    """One line of a table. ``names`` are separated by ``|``; ``spec`` is that of ``arguments``.

    ``still``: the vCPUs are held while it works. Those that ask the VMM must not be: it may wait for its vCPUs.
    ``devices``: where those may be read it holds them itself, for as long as it does not.
    """

    names: str
    spec: str
    params: str
    help: str
    handler: Handler
    still: bool = False
    devices: bool = False

    @property
    def usage(self) -> str:
        """The line of ``help``, without what stands before the name."""
        return f"{self.names} {self.params} -- {self.help}\n"


def find(commands: Iterable[Command], name: str) -> Command | None:
    """By one of its names."""
    return next((each for each in commands if name in each.names.split("|")), None)
