"""The file of a kernel's symbols that gdb loads: what may be overwritten, and how it is written."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from sevkvm.cli.render import size
from sevkvm.cli.run import say
from sevkvm.errors import SevKvmError

if TYPE_CHECKING:
    from sevkvm.dump.output import Target
    from sevkvm.linux.symbols import Symbols


def symbol_target(name: str, *, force: bool = False) -> Target:
    """Where ``name`` is; an earlier file of symbols is replaced, anything else is not: it may be somebody's vmlinux."""
    from sevkvm.dump.output import prepare
    from sevkvm.linux.symbolfile import is_ours

    with suppress(OSError):  # what is wrong with it, prepare() says
        force = force or is_ours(Path(name))
    return prepare(name, force=force, check_space=False)


def write_symbol_file(target: Target, symbols: Symbols) -> None:
    """Mode 0600, complete or not there; what they are and cost goes to stderr."""
    from sevkvm.linux.symbolfile import elf_file

    data = elf_file(symbols)
    try:
        with target.open(len(data)) as sink:
            sink.write(data)
    except SevKvmError as error:
        error.help = f"it takes {size(len(data))}: name a file where there is room, and the right to write"
        raise
    say(symbols.told)
