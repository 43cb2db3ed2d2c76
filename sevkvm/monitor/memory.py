"""``x``, ``xp`` and ``print``: values as QEMU's monitor writes them."""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Final

from sevkvm.monitor.command import Command
from sevkvm.monitor.examine import ExamineFormat, Reader, examine, short_reads
from sevkvm.monitor.labels import beside
from sevkvm.monitor.places import Places

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sevkvm.monitor.arguments import Arguments
    from sevkvm.monitor.labels import Labels
    from sevkvm.monitor.monitor import Monitor

    Read = Callable[[int, int], bytes]

_ADDRESS_DIGITS: Final = 16
_NAMED: Final = {0x27: "\\'", 0x5C: "\\\\", 0x0A: "\\n", 0x0D: "\\r"}


def x(monitor: Monitor, given: Arguments) -> Iterator[str]:
    """Guest-virtual memory, by the tables of the current vCPU.

    Where devices may be read, memory is read here, while the vCPUs are held, and devices when they run again.
    """
    guest = monitor.guest
    labels = monitor.symbols().label if monitor.symbolic else None
    with guest.held(needed=False):
        read = _virtual(monitor)
        places = Places(guest, read)
        if guest.reads_devices and given.format.letter != "i":
            places.keep(given.numbers["addr"], _form(given).nbytes)
    if given.format.letter == "i":
        return _instructions(monitor, given, read, guest.held(needed=False), labels)
    return _show(monitor, given, places, labels)


def xp(monitor: Monitor, given: Arguments) -> Iterator[str]:
    """Guest-physical memory."""
    read = _physical(monitor)
    if given.format.letter == "i":
        return _instructions(monitor, given, read, nullcontext())
    return _show(monitor, given, Places(monitor.guest, read))


def virtual_reader(monitor: Monitor) -> Reader:
    """Memory alone, never a device."""
    return short_reads(_virtual(monitor))


def physical_reader(monitor: Monitor) -> Reader:
    """Memory alone, never a device."""
    return short_reads(_physical(monitor))


def _virtual(monitor: Monitor) -> Read:
    """One paging form for the whole answer: the registers are read once."""
    guest = monitor.guest
    return functools.partial(guest.read_virtual, form=guest.paging(monitor.vcpu))


def _physical(monitor: Monitor) -> Read:
    """Private memory of an encrypted guest. Its C-bit is taken off an address that has it.

    drgn takes addresses from the page tables with the C-bit in them, and asks for them like that.
    """
    guest = monitor.guest
    cbit_mask = 1 << guest.sev.cbit_pos if guest.sev.encrypted and guest.sev.cbit_pos is not None else 0
    return lambda gpa, nbytes: guest.memory.read(gpa & ~cbit_mask, nbytes)


def _instructions(
    monitor: Monitor,
    given: Arguments,
    read: Read,
    standing: AbstractContextManager[None],
    labels: Labels | None = None,
) -> Iterator[str]:
    from sevkvm.monitor.instructions import disassemble

    with standing:
        yield from disassemble(monitor, short_reads(read), given.format.count, given.numbers["addr"], labels)


def _show(monitor: Monitor, given: Arguments, places: Places, labels: Labels | None = None) -> Iterator[str]:
    examination = examine(places.memory, _form(given), given.numbers["addr"], places.register)
    for line in examination:
        if labels is not None:
            digits = line[:_ADDRESS_DIGITS]
            line = f"{digits}{beside(labels, int(digits, 16))}{line[_ADDRESS_DIGITS:]}"
        yield f"{line}\n"
    if examination.failed_at is not None:
        monitor.hole()
        monitor.guest.explain(places.fault)


def _form(given: Arguments) -> ExamineFormat:
    return ExamineFormat(given.format.count, given.format.letter, given.format.unit_nbytes)


def print_value(monitor: Monitor, given: Arguments) -> Iterator[str]:
    """The value of an expression; the size is of no consequence, 64 bits are shown (32 of them as a character)."""
    value, letter = given.numbers["val"], given.format.letter
    if letter == "c":
        code = value & 0xFFFFFFFF
        text = _NAMED.get(code) or (chr(code) if 32 <= code <= 126 else f"\\x{code:02x}")
        yield f"'{text}'\n"
    elif letter == "x":
        yield f"0x{value:x}\n" if value else "0\n"
    elif letter == "o":
        yield f"0{value:o}\n" if value else "0\n"
    elif letter == "u":
        yield f"{value}\n"
    else:
        yield f"{value - (value >> 63 << 64)}\n"


COMMANDS: Final = (
    Command(
        "x",
        "fmt:/,addr:l",
        "/fmt addr",
        "virtual memory dump starting at 'addr'",
        x,
        still=True,
        devices=True,
    ),
    Command("xp", "fmt:/,addr:l", "/fmt addr", "physical memory dump starting at 'addr'", xp),
    Command(
        "print|p",
        "fmt:/,val:l",
        "/fmt expr",
        "print expression value (use $reg for CPU register access)",
        print_value,
    ),
)
