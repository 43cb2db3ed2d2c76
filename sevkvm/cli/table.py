"""Every command: where it lives, what it does in one line, which section of the help it belongs to.

A plain table, so that ``sevkvm --help`` imports no command. Each module has a click command named ``command``.
"""

from __future__ import annotations

from typing import NamedTuple


class Entry(NamedTuple):
    """One command: ``module`` under ``sevkvm.cli``, one line of help, a heading."""

    module: str
    help: str
    section: str


GUESTS = "Guests on this host"
MEMORY = "Registers and memory of a guest"
FILES = "Files"
PRACTICE = "Practice without SEV hardware"
SHELL = "Shell"

COMMANDS = {
    "lab": Entry("lab", "start a small guest whose every byte is known", PRACTICE),
    "completion": Entry("completion", "print the completion script of a shell", SHELL),
}
