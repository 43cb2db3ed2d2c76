"""gdb's packets without I/O: bytes in, events out.

``receive_data()`` takes what arrived, ``next_event()`` gives a packet or a protocol error, nothing else, and the
same ones however the bytes were cut into pieces.

Source: "Debugging with GDB", appendix E.1 (overview of the remote protocol) and E.9 (packet acknowledgment).
"""

from __future__ import annotations

from typing import Final, NamedTuple

PACKET_NBYTES: Final = 1 << 16
"""Most bytes between ``$`` and ``#``, either way: what we tell gdb as PacketSize."""

_PACKET, _END, _ESCAPE, _INTERRUPT = b"$#}\x03"
_TRAILER_NBYTES: Final = 3  # '#' and two digits
_ESCAPED: Final = frozenset(b"#$}*")
_ESCAPE_XOR: Final = 0x20
_DIGITS: Final = frozenset(b"0123456789abcdefABCDEF")


class Packet(NamedTuple):
    """A command: what stood between ``$`` and ``#``, escapes undone."""

    data: bytes


class Acknowledgement(NamedTuple):
    """``+`` (``received``) or ``-`` (please send it again)."""

    received: bool


class Interrupt(NamedTuple):
    """Ctrl-C: a byte of its own, outside packets."""


class ProtocolFault(NamedTuple):
    """Not the protocol. After a ``fatal`` one nothing follows: what speaks there is not gdb."""

    reason: str
    fatal: bool


Event = Packet | Acknowledgement | Interrupt | ProtocolFault


class Decoder:
    """Events of one connection. Holds one packet at most, besides what the last ``receive_data`` brought."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._at = 0  # of the first byte that no event has used
        self._scanned = 0  # no end of the packet that starts there is before this
        self._closed = False

    def receive_data(self, data: bytes) -> None:
        """Take what arrived; ignored after a fatal fault."""
        if self._closed:
            return
        del self._buffer[: self._at]
        self._scanned -= self._at
        self._at = 0
        self._buffer += data

    def next_event(self) -> Event | None:
        """The next event, or None until more data comes."""
        if self._closed or self._at >= len(self._buffer):
            return None
        first = self._buffer[self._at]
        if first == _PACKET:
            return self._packet()
        self._at += 1
        if first in b"+-":
            return Acknowledgement(first == ord("+"))
        if first == _INTERRUPT:
            return Interrupt()
        # lenient stubs skip it; then a web page that posts to a local port can speak to them
        return self._fatal(f"byte 0x{first:02x} outside of a packet")

    def _packet(self) -> Event | None:
        start = self._at + 1
        end = self._buffer.find(_END, max(start, self._scanned))
        if (len(self._buffer) if end < 0 else end) - start > PACKET_NBYTES:
            return self._fatal(f"a packet of more than {PACKET_NBYTES} bytes")
        if end < 0:
            self._scanned = len(self._buffer)
            return None
        if len(self._buffer) < end + _TRAILER_NBYTES:
            self._scanned = end
            return None
        raw, digits = bytes(self._buffer[start:end]), bytes(self._buffer[end + 1 : end + _TRAILER_NBYTES])
        self._at = end + _TRAILER_NBYTES
        if not _DIGITS.issuperset(digits):
            return ProtocolFault("a checksum that is no number", fatal=False)
        if int(digits, 16) != sum(raw) & 0xFF:
            return ProtocolFault("a wrong checksum", fatal=False)
        data = _unescaped(raw)
        return ProtocolFault("an escape without its byte", fatal=False) if data is None else Packet(data)

    def _fatal(self, reason: str) -> ProtocolFault:
        self._closed = True
        self._buffer.clear()
        return ProtocolFault(reason, fatal=True)


def _unescaped(raw: bytes) -> bytes | None:
    """The bytes meant; None where the last one is missing."""
    first, *rest = raw.split(bytes((_ESCAPE,)))
    out = bytearray(first)
    pieces = iter(rest)
    for piece in pieces:
        if piece:
            out.append(piece[0] ^ _ESCAPE_XOR)
            out += piece[1:]
            continue
        behind = next(pieces, None)  # an escape right behind an escape is the byte that was escaped
        if behind is None:
            return None
        out.append(_ESCAPE ^ _ESCAPE_XOR)
        out += behind
    return bytes(out)


def escape(data: bytes) -> bytes:
    """Binary data as it may stand in a packet."""
    if not _ESCAPED.intersection(data):
        return data
    return b"".join(
        bytes((_ESCAPE, byte ^ _ESCAPE_XOR)) if byte in _ESCAPED else bytes((byte,)) for byte in data
    )


def frame(payload: bytes) -> bytes:
    """A packet around a payload whose binary parts are escaped."""
    return b"$%b#%02x" % (payload, sum(payload) & 0xFF)
