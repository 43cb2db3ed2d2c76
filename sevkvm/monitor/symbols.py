"""``sym`` and ``addr``: the kernel's own names. QEMU's monitor has no such commands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sevkvm.monitor.command import Command
from sevkvm.monitor.problem import CommandProblem, failed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sevkvm.monitor.arguments import Arguments
    from sevkvm.monitor.monitor import Monitor

_MOST_SHOWN: Final = 1000


def sym(monitor: Monitor, given: Arguments) -> Iterator[str]:
    """The function or variable that an address is in."""
    gva = given.numbers["addr"]
    label = monitor.symbols().label(gva)
    if label is None:
        raise failed(f"0x{gva:x} is not in the kernel's image: it has no name")
    yield f"0x{gva:016x}: {label}\n"


def addr(monitor: Monitor, given: Arguments) -> Iterator[str]:
    """Where a name is; the static functions of several files may share one."""
    name = given.texts["name"]
    found = monitor.symbols().named(name)
    if not found:
        raise failed(f"the kernel has no symbol '{name}'")
    for symbol in found[:_MOST_SHOWN]:
        yield f"0x{symbol.gva:016x}: {symbol.name}\n"
    if len(found) > _MOST_SHOWN:
        yield f"... and {len(found) - _MOST_SHOWN} more\n"


def value_of(monitor: Monitor, name: str) -> int:
    """A name in an expression; CommandProblem where it is none, or not one address."""
    gvas = {symbol.gva for symbol in monitor.symbols().named(name)}
    if not gvas:
        raise CommandProblem(f"the kernel has no symbol '{name}'")
    if len(gvas) > 1:
        raise CommandProblem(f"'{name}' is at {len(gvas)} addresses: \"addr {name}\" tells them")
    return gvas.pop()


COMMANDS: Final = (
    Command("addr", "name:s", "name", "show the virtual addresses of a symbol of the guest's kernel", addr),
    Command(
        "sym", "addr:l", "addr", "show which function or variable of the guest's kernel 'addr' is in", sym
    ),
)
