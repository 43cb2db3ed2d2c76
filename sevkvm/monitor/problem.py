"""Why a command gives no answer, in the words that QEMU's monitor has for it."""

from __future__ import annotations


class CommandProblem(Exception):
    """``text`` (without a line end) is the answer; the command has done nothing, or nothing more."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text


class BadArgument(CommandProblem):
    """The line does not fit the command: the answer also names the help."""


def failed(text: str) -> CommandProblem:
    """What was asked for was tried and failed: QEMU puts ``Error:`` before such reasons."""
    return CommandProblem(f"Error: {text}")
