"""The plug-in for drgn's own command: memory that a monitor of QEMU's shows as ciphertext is decrypted.

    SEVKVM_DRGN='--pid 4242' drgn --qemu /run/vm.qmp

drgn loads every plug-in that is installed (entry points ``drgn.plugins``), so this module imports nothing and does
nothing unless the variable is set. It holds the guest options of ``sevkvm drgn``, and --hold and --max-age.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from contextlib import ExitStack

    import drgn

    from sevkvm.cli.options import GuestSession

VARIABLE = "SEVKVM_DRGN"


def drgn_prog_set(prog: drgn.Program) -> None:
    """drgn's hook: ``prog`` has got a target. It may be called again while we set ours."""
    words = os.environ.get(VARIABLE, "").strip()
    if words and "sevkvm" not in prog.cache:
        prog.cache["sevkvm"] = None
        _take_over(prog, words)


def _take_over(prog: drgn.Program, words: str) -> None:
    """Whatever goes wrong ends drgn: it was told to look at a guest, and would look at something else."""
    import atexit
    from contextlib import ExitStack

    from sevkvm.cli.run import exit_status_of

    stack = ExitStack()
    status = exit_status_of(lambda: _serve(prog, words, stack))
    if status:
        stack.close()
        os._exit(status)  # drgn ignores what a hook raises, SystemExit too
    atexit.register(stack.close)


def _serve(prog: drgn.Program, words: str, stack: ExitStack) -> None:
    import shlex

    from drgn import ProgramFlags

    from sevkvm.cli.drgn_hold import BoundedHold
    from sevkvm.drgnprog.program import kernel_note, program_memory, serve
    from sevkvm.errors import UsageError

    if prog.core_dump_path is not None or prog.flags & ProgramFlags.IS_LOCAL:
        raise UsageError(
            f"{VARIABLE} is set, and drgn was given another target than a guest",
            help=f"say drgn --qemu SOCKET, or `unset {VARIABLE}`; for a dump there is `sevkvm drgn --file`",
        )
    try:
        options = shlex.split(words)
    except ValueError as error:
        raise UsageError(f"{VARIABLE}: {error}") from None
    session, hold, max_age = _parsed(options)
    guest = stack.enter_context(session.open())
    note = kernel_note(guest)
    memory = program_memory(guest, note, max_age / 1000)
    if not prog.flags & ProgramFlags.IS_LINUX_KERNEL:
        prog.set_linux_kernel_custom(note.text, True)
    serve(prog, guest, memory)
    stack.enter_context(BoundedHold(guest, memory, hold))


def _parsed(words: list[str]) -> tuple[GuestSession, float | None, int]:
    """The session, and the two options of ``sevkvm drgn`` that make sense here."""
    import click

    from sevkvm.cli.drgn import hold_option, max_age_option
    from sevkvm.cli.options import guest_options
    from sevkvm.errors import UsageError

    @click.command(VARIABLE, add_help_option=False)
    @hold_option
    @max_age_option
    @guest_options
    def options(**settings: Any) -> dict[str, Any]:
        return settings

    said: dict[str, Any] = options.main(words, VARIABLE, standalone_mode=False)
    session: GuestSession = said["session"]
    if session.file is not None:
        raise UsageError(f"{VARIABLE}: --file is for `sevkvm drgn`", help="name a running guest")
    return session, said["hold"], said["max_age"]
