"""One conversation with a guest in the words of QEMU's monitor: a line in, text out; no input, no output.

The vCPUs are held for as long as a command needs them to stand still, and everything that was read is forgotten
before the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Final

from sevkvm import errors
from sevkvm.monitor import arguments, names
from sevkvm.monitor.expression import SPACES, Values
from sevkvm.monitor.problem import BadArgument, CommandProblem

if TYPE_CHECKING:
    from sevkvm.guest import Guest
    from sevkvm.linux.symbols import Symbols
    from sevkvm.monitor.command import Command
    from sevkvm.monitor.outside import Outside
    from sevkvm.monitor.runcontrol import RunControl
    from sevkvm.vcpu import VcpuState

OUTPUT_NBYTES: Final = 64 << 20
MOST_LINE: Final = 4095  # characters, as QEMU's line editor takes them


class Monitor:
    """``vcpu``: the one that commands are about (``cpu N``), or None for the user's choice or the first.

    After ``execute``: ``status`` is 0, 1 (the command failed) or 6 (its answer ends in a hole), and ``over`` tells
    that the conversation is to end. ``symbolic``: ``x`` shows the kernel's names, and expressions may have them; QEMU
    does neither. ``told`` gets what reading them cost. ``names``: the symbols once something has asked for them.
    """

    def __init__(
        self,
        guest: Guest,
        outside: Outside,
        control: RunControl,
        *,
        output_nbytes: int = OUTPUT_NBYTES,
        symbolic: bool = False,
        told: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.guest = guest
        self.outside = outside
        self.control = control
        self.defaults = arguments.Defaults()
        self.vcpu: int | None = None
        self.status = 0
        self.over = False
        self.symbolic = symbolic
        self.names: Symbols | None = None
        self._told = told
        self._output_nbytes = output_nbytes
        self._shown: list[str] = []

    def execute(self, line: str) -> str:
        """The answer to a command line, each line of it ended by a newline.

        Whatever a line holds, the answer is text. Raises TargetGone when the VMM has died.
        """
        self.status = 0
        self._shown = []
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
            # a device may not tell again what it has told
            told = "".join(self._shown) if self.guest.reads_devices else ""
            return f"{told}Error: {error.message}\n{hint}"

    def state(self) -> VcpuState:
        """Registers of the vCPU that commands are about; RegistersUnavailable, UsageError."""
        states = self.guest.registers()
        wanted = self.guest.default_vcpu if self.vcpu is None else self.vcpu
        for state in states:
            if wanted is None or state.index == wanted:
                return state
        raise errors.UsageError(f"no vCPU {wanted}")

    def symbols(self) -> Symbols:
        """The kernel's, read when they are first needed; BadGuestData where there are none."""
        if self.names is None:
            self.names = self.guest.symbols()
            self._told(self.names.told)
        return self.names

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
            with self._standing(found.command), self.guest.asking_devices():
                return self._run(found.command, line[found.end :])
        except BadArgument as problem:
            told = line[: found.end].rstrip(SPACES)
            raise CommandProblem(f'{problem.text}\nTry "help {told}" for more information') from None

    def _standing(self, command: Command) -> AbstractContextManager[None]:
        still = command.still and not (command.devices and self.guest.reads_devices)
        return self.guest.held(needed=False) if still else nullcontext()

    def _run(self, command: Command, rest: str) -> str:
        values = Values(self._register, self._symbol if self.symbolic else None)
        given = arguments.parse(command.names, command.spec, rest, values, self.defaults)
        return self._bounded(command.handler(self, given))

    def _bounded(self, pieces: Iterable[str]) -> str:
        """Guest memory decides how long an answer gets."""
        room = self._output_nbytes
        kept = self._shown
        for piece in pieces:
            kept.append(piece)
            room -= len(piece)
            if room < 0:
                self.status = errors.EXIT_FAILURE
                kept[-1] = piece[:room]
                kept.append(f"\n... cut after {self._output_nbytes} bytes\n")
                break
        self._shown = []
        return "".join(kept)

    def _register(self, name: str) -> int | None:
        # a name that is none is no reason to stop a vCPU
        return names.value_of(name, self.state()) if name in names.NAMES else None

    def _symbol(self, name: str) -> int:
        from sevkvm.monitor.symbols import value_of

        return value_of(self, name)
