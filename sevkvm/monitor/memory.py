"""``x``, ``xp`` and ``print``: values as QEMU's monitor writes them."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Final

from sevkvm.monitor.command import Command
from sevkvm.monitor.examine import ExamineFormat, Reader, examine, short_reads
from sevkvm.monitor.labels import beside

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sevkvm.monitor.arguments import Arguments
    from sevkvm.monitor.labels import Labels
    from sevkvm.monitor.monitor import Monitor

_ADDRESS_DIGITS: Final = 16
_NAMED: Final = {0x27: "\\'", 0x5C: "\\\\", 0x0A: "\\n", 0x0D: "\\r"}


def x(monitor: Monitor, given: Arguments) -> Iterator[str]:
    """Guest-virtual memory, by the tables of the current vCPU."""
    labels = monitor.symbols().label if monitor.symbolic else None
    return _show(monitor, given, virtual_reader(monitor), labels)


def xp(monitor: Monitor, given: Arguments) -> Iterator[str]:
    """Guest-physical memory."""
    return _show(monitor, given, physical_reader(monitor))


def virtual_reader(monitor: Monitor) -> Reader:
    """One paging form for the whole answer: the registers are read once."""
    guest = monitor.guest
    return short_reads(functools.partial(guest.read_virtual, form=guest.paging(monitor.vcpu)))


def physical_reader(monitor: Monitor) -> Reader:
    """Private memory of an encrypted guest. Its C-bit is taken off an address that has it.

    drgn takes addresses from the page tables with the C-bit in them, and asks for them like that.
    """
    guest = monitor.guest
    cbit_mask = 1 << guest.sev.cbit_pos if guest.sev.encrypted and guest.sev.cbit_pos is not None else 0

    def read(gpa: int, nbytes: int) -> bytes:
        return guest.memory.read(gpa & ~cbit_mask, nbytes)

    return short_reads(read)


def _show(monitor: Monitor, given: Arguments, reader: Reader, labels: Labels | None = None) -> Iterator[str]:
    fmt, address = given.format, given.numbers["addr"]
    if fmt.letter == "i":
        from sevkvm.monitor.instructions import disassemble

        yield from disassemble(monitor, reader, fmt.count, address, labels)
        return
    examination = examine(reader, ExamineFormat(fmt.count, fmt.letter, fmt.unit_nbytes), address)
    for line in examination:
        if labels is not None:
            digits = line[:_ADDRESS_DIGITS]
            line = f"{digits}{beside(labels, int(digits, 16))}{line[_ADDRESS_DIGITS:]}"
        yield f"{line}\n"
    if examination.failed_at is not None:
        monitor.hole()


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
    Command("x", "fmt:/,addr:l", "/fmt addr", "virtual memory dump starting at 'addr'", x, still=True),
    Command("xp", "fmt:/,addr:l", "/fmt addr", "physical memory dump starting at 'addr'", xp),
    Command(
        "print|p",
        "fmt:/,val:l",
        "/fmt expr",
        "print expression value (use $reg for CPU register access)",
        print_value,
    ),
)
