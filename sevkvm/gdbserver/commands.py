"""Which packet is whose: the table of commands; those for registers, memory and breakpoints.

Source: "Debugging with GDB", appendix E.2 (packets).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sevkvm import errors
from sevkvm.gdbserver import queries, running
from sevkvm.gdbserver.fields import (
    ADDRESS_END,
    CANNOT_ACCESS,
    OK,
    UNKNOWN,
    Malformed,
    hex_bytes,
    number,
    numbers,
)
from sevkvm.gdbserver.packet import PACKET_NBYTES, escape
from sevkvm.gdbserver.registers import REGISTERS, pack

if TYPE_CHECKING:
    from sevkvm.gdbserver.session import Answer, Handler, Session

_MOST_READ: Final = (PACKET_NBYTES - 1) // 2  # each byte can take two, in digits or as an escape


def find(packet: bytes) -> tuple[Handler, bytes]:
    """Who handles a packet, and what of it is left to read: the longest name that it starts with."""
    for name, handler in _NAMED.items():
        if packet.startswith(name):
            return handler, packet[len(name) :]
    return _LETTERS.get(packet[:1], _unknown), packet[1:]


def _unknown(session: Session, rest: bytes) -> Answer:
    return UNKNOWN


def _read_registers(session: Session, rest: bytes) -> Answer:
    told = session.target.registers(session.thread)
    return b"".join(pack(register, told) for register in REGISTERS)


def _write_registers(session: Session, rest: bytes) -> Answer:
    """All at once: only those that differ are written."""
    told = session.target.registers(session.thread)
    if len(rest) != sum(2 * register.nbytes for register in REGISTERS):
        raise Malformed("not all registers")
    at = 0
    for register in REGISTERS:
        digits = rest[at : at + 2 * register.nbytes]
        at += len(digits)
        if digits.lower() != pack(register, told) and digits.strip(b"x"):
            value = int.from_bytes(hex_bytes(digits), "little")
            session.target.write_register(session.thread, register.name, value)
    return OK


def _read_register(session: Session, rest: bytes) -> Answer:
    index = number(rest)
    if index >= len(REGISTERS):
        raise Malformed("no such register")
    return pack(REGISTERS[index], session.target.registers(session.thread))


def _write_register(session: Session, rest: bytes) -> Answer:
    which, _, digits = rest.partition(b"=")
    index, value = number(which), hex_bytes(digits)
    if index >= len(REGISTERS) or len(value) != REGISTERS[index].nbytes:
        raise Malformed("no such register, or not its size")
    session.target.write_register(session.thread, REGISTERS[index].name, int.from_bytes(value, "little"))
    return OK


def _memory(session: Session, rest: bytes) -> bytes | None:
    """The bytes asked for, as many as fit and can be read; None if the first one cannot."""
    address, nbytes = numbers(rest, 2)
    nbytes = min(nbytes, _MOST_READ, ADDRESS_END - address)
    if not nbytes:
        return b""
    try:
        return session.target.read(session.thread, address, nbytes, physical=session.physical) or None
    except errors.TargetGone:
        raise
    except errors.SevKvmError as error:
        session.tell(error.message + (f" ({error.help})" if error.help else ""))
        return None


def _read_memory(session: Session, rest: bytes) -> Answer:
    data = _memory(session, rest)
    return CANNOT_ACCESS if data is None else data.hex().encode()


def _read_binary(session: Session, rest: bytes) -> Answer:
    """As gdb 16 asks for it, which is told of it by ``binary-upload+``."""
    data = _memory(session, rest)
    return CANNOT_ACCESS if data is None else b"b" + escape(data)


def _write_memory(session: Session, rest: bytes) -> Answer:
    where, _, digits = rest.partition(b":")
    return _write(session, where, hex_bytes(digits))


def _write_binary(session: Session, rest: bytes) -> Answer:
    where, _, data = rest.partition(b":")
    return _write(session, where, data)


def _write(session: Session, where: bytes, data: bytes) -> bytes:
    address, nbytes = numbers(where, 2)
    if nbytes != len(data) or address + nbytes > ADDRESS_END:
        raise Malformed("not as many bytes as it says")
    if data:  # gdb asks with none whether we know the packet
        session.target.write(session.thread, address, data, physical=session.physical)
    return OK


def _breakpoint(session: Session, rest: bytes, insert: bool) -> bytes:
    kind, address, length = numbers(rest.partition(b";")[0], 3)
    if kind > 4:
        return UNKNOWN
    session.target.breakpoint(insert, kind, address, length)
    return OK


_LETTERS: Final[dict[bytes, Handler]] = {
    b"g": _read_registers,
    b"G": _write_registers,
    b"p": _read_register,
    b"P": _write_register,
    b"m": _read_memory,
    b"x": _read_binary,
    b"M": _write_memory,
    b"X": _write_binary,
    b"Z": lambda session, rest: _breakpoint(session, rest, True),
    b"z": lambda session, rest: _breakpoint(session, rest, False),
    **running.LETTERS,
}
_NAMED: Final[dict[bytes, Handler]] = dict(
    sorted((queries.NAMED | running.NAMED).items(), key=lambda item: -len(item[0]))
)
