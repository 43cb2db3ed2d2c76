"""Where one JSON object ends and the next begins in a stream of bytes: QMP clients need not send line ends.

Linear in what is received, whatever it is; nothing is parsed here.
"""

from __future__ import annotations

from typing import Final

MOST_NBYTES: Final = 1 << 20
_SPACES: Final = frozenset(b" \t\r\n")
_OPENING: Final = frozenset(b"{[")
_CLOSING: Final = frozenset(b"}]")
_QUOTE, _ESCAPE, _NEWLINE = b'"\\\n'


class TooLong(Exception):
    """A message that does not end."""


class Framer:
    """Bytes in, whole messages out. What is no object is given back as it is, up to the next space or object."""

    def __init__(self, most_nbytes: int = MOST_NBYTES) -> None:
        self._most_nbytes = most_nbytes
        self._message = bytearray()
        self._depth = 0
        self._quoted = False
        self._escaped = False

    def feed(self, data: bytes) -> list[bytes]:
        """The messages that ``data`` completes. Raises TooLong."""
        done: list[bytes] = []
        for byte in data:
            if self._depth == 0 and not self._quoted and (byte in _SPACES or byte in _OPENING):
                self._flush(done)
                if byte in _SPACES:
                    continue
            self._message.append(byte)
            if len(self._message) > self._most_nbytes:
                raise TooLong
            if self._step(byte):
                self._flush(done)
        return done

    def _step(self, byte: int) -> bool:
        """Is the message complete with this byte?"""
        if self._quoted:
            self._quoted = self._escaped or byte != _QUOTE
            self._escaped = not self._escaped and byte == _ESCAPE
            return False
        if byte == _QUOTE:
            self._quoted = self._depth > 0
        elif byte in _OPENING:
            self._depth += 1
        elif byte in _CLOSING:
            self._depth = max(0, self._depth - 1)
            return self._depth == 0
        return False

    def _flush(self, done: list[bytes]) -> None:
        if self._message:
            done.append(bytes(self._message))
            self._message.clear()
