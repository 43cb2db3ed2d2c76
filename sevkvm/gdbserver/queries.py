"""Queries: q and Q packets.

Sources: "Debugging with GDB", appendix E.4 (general query packets); docs/system/gdb.rst of QEMU for PhyMemMode.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sevkvm import errors
from sevkvm.gdbserver.description import target_xml
from sevkvm.gdbserver.fields import OK, UNKNOWN, Malformed, hex_bytes, numbers
from sevkvm.gdbserver.packet import PACKET_NBYTES, escape
from sevkvm.gdbserver.running import thread_number
from sevkvm.gdbserver.target import Refused

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sevkvm.gdbserver.session import Answer, Handler, Session

_CONSOLE_NBYTES: Final = PACKET_NBYTES // 4  # of text in one packet, in digits


def _supported(session: Session, rest: bytes) -> Answer:
    """What we can do; gdb's own list is of no use to us."""
    return (
        b"PacketSize=%x;QStartNoAckMode+;qXfer:features:read+;vContSupported+;binary-upload+" % PACKET_NBYTES
    )


def _no_ack(session: Session, rest: bytes) -> Answer:
    session.no_ack = True
    return OK


def _attached(session: Session, rest: bytes) -> Answer:
    """We found the guest running: gdb detaches from it when it quits."""
    return b"1"


def _current(session: Session, rest: bytes) -> Answer:
    return b"QC%x" % session.thread


def _threads(session: Session, rest: bytes) -> Answer:
    return b"m" + b",".join(b"%x" % thread for thread in session.target.threads)


def _no_more_threads(session: Session, rest: bytes) -> Answer:
    return b"l"


def _thread_info(session: Session, rest: bytes) -> Answer:
    thread = thread_number(session, rest)
    if thread is None:
        raise Malformed("no such thread")
    return session.target.describe(thread).encode().hex().encode()


def _features(session: Session, rest: bytes) -> Answer:
    """A piece of the target description."""
    name, _, where = rest.partition(b":")
    offset, nbytes = numbers(where, 2)
    if name != b"target.xml":
        return b"E00"
    document = target_xml().encode()
    nbytes = min(nbytes, PACKET_NBYTES // 2)
    return (b"m" if offset + nbytes < len(document) else b"l") + escape(document[offset : offset + nbytes])


def _physical_mode(session: Session, rest: bytes) -> Answer:
    return b"1" if session.physical else b"0"


def _set_physical_mode(session: Session, rest: bytes) -> Answer:
    if rest not in (b"0", b"1"):
        raise Malformed("neither 0 nor 1")
    session.physical = rest == b"1"
    return OK


def _monitor(session: Session, rest: bytes) -> Iterator[bytes]:
    """A line for the monitor; what it prints goes to gdb's console as it comes."""
    line = hex_bytes(rest).decode("utf-8", "replace").strip()
    if session.monitor is None:
        yield from _console("no monitor here\n")
        yield OK
        return
    try:
        for text in session.monitor(line, session.thread):
            yield from _console(text)
    except errors.TargetGone:
        raise
    except errors.SevKvmError as error:
        yield from _console(f"error: {error.message}\n" + (f"hint: {error.help}\n" if error.help else ""))
    except Refused as reason:
        yield from _console(f"error: {reason}\n")
    yield OK


def _console(text: str) -> Iterator[bytes]:
    data = text.encode("utf-8", "replace")
    for at in range(0, len(data), _CONSOLE_NBYTES):
        yield b"O" + data[at : at + _CONSOLE_NBYTES].hex().encode()


def _unknown(session: Session, rest: bytes) -> Answer:
    return UNKNOWN


NAMED: Final[dict[bytes, Handler]] = {
    b"qSupported": _supported,
    b"QStartNoAckMode": _no_ack,
    b"qAttached": _attached,
    b"qC": _current,
    b"qCRC:": _unknown,  # begins like qC
    b"qfThreadInfo": _threads,
    b"qsThreadInfo": _no_more_threads,
    b"qThreadExtraInfo,": _thread_info,
    b"qXfer:features:read:": _features,
    b"qqemu.PhyMemMode": _physical_mode,
    b"Qqemu.PhyMemMode:": _set_physical_mode,
    b"qRcmd,": _monitor,
}
