"""One conversation with a guest in the words of QEMU's monitor: a line in, text out; no input, no output.

The vCPUs are held for as long as a command needs them to stand still, and everything that was read is forgotten
before the next one.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Final

from sevkvm import errors
from sevkvm.monitor import arguments, names
from sevkvm.monitor.expression import SPACES
from sevkvm.monitor.problem import BadArgument, CommandProblem

if TYPE_CHECKING:
    from sevkvm.guest import Guest
    from sevkvm.monitor.command import Command
    from sevkvm.monitor.outside import Outside
    from sevkvm.monitor.runcontrol import RunControl
    from sevkvm.vcpu import VcpuState

OUTPUT_NBYTES: Final = 64 << 20
MOST_LINE: Final = 4095  # characters, as QEMU's line editor takes them


class Monitor:
    """``vcpu``: the one that commands are about (``cpu N``), or None for the user's choice or the first.

    After ``execute``: ``status`` is 0, 1 (the command failed) or 6 (its answer ends in a hole), and ``over`` tells
    that the conversation is to end.
    """

    def __init__(
        self,
        guest: Guest,
        outside: Outside,
        control: RunControl,
        *,
        output_nbytes: int = OUTPUT_NBYTES,
    ) -> None:
        self.guest = guest
        self.outside = outside
        self.control = control
        self.defaults = arguments.Defaults()
        self.vcpu: int | None = None
        self.status = 0
        self.over = False
        self._output_nbytes = output_nbytes

    def execute(self, line: str) -> str:
        """The answer to a command line, each line of it ended by a newline.

        Whatever a line holds, the answer is text. Raises TargetGone when the VMM has died.
        """
        self.status = 0
        self.guest.memory.invalidate()
        try:
            return self._execute(line)
        except CommandProblem as problem:
            self.status = errors.EXIT_FAILURE
            return f"{problem.text}\n"
        except errors.TargetGone:
            raise
        except errors.SevKvmError as error:
            self.status = error.exit_code
            hint = f"hint: {error.help}\n" if error.help else ""
            return f"Error: {error.message}\n{hint}"

    def state(self) -> VcpuState:
        """Registers of the vCPU that commands are about; RegistersUnavailable, UsageError."""
        states = self.guest.registers()
        wanted = self.guest.default_vcpu if self.vcpu is None else self.vcpu
        for state in states:
            if wanted is None or state.index == wanted:
                return state
        raise errors.UsageError(f"no vCPU {wanted}")

    def hole(self) -> None:
        """The answer ends at memory that cannot be read."""
        self.status = errors.EXIT_HOLES

    def _execute(self, line: str) -> str:
        from sevkvm.monitor.table import lookup

        if len(line) > MOST_LINE or "\0" in line:
            raise CommandProblem("the line is too long" if len(line) > MOST_LINE else "a line has no NUL")
        if not line.strip(SPACES):
            return ""
        found = lookup(line)
        if found.command is None:
            raise CommandProblem(f"unknown command: '{line[: found.end]}'")
        try:
            with self.guest.held(needed=False) if found.command.still else nullcontext():
                return self._run(found.command, line[found.end :])
        except BadArgument as problem:
            told = line[: found.end].rstrip(SPACES)
            raise CommandProblem(f'{problem.text}\nTry "help {told}" for more information') from None

    def _run(self, command: Command, rest: str) -> str:
        given = arguments.parse(command.names, command.spec, rest, self._register, self.defaults)
        return self._bounded(command.handler(self, given))

    def _bounded(self, pieces: Iterable[str]) -> str:
        """Guest memory decides how long an answer gets."""
        room = self._output_nbytes
        kept: list[str] = []
        for piece in pieces:
            kept.append(piece)
            room -= len(piece)
            if room < 0:
                self.status = errors.EXIT_FAILURE
                kept[-1] = piece[:room]
                kept.append(f"\n... cut after {self._output_nbytes} bytes\n")
                break
        return "".join(kept)

    def _register(self, name: str) -> int | None:
        # a name that is none is no reason to stop a vCPU
        return names.value_of(name, self.state()) if name in names.NAMES else None
