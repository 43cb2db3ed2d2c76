"""QEMU's human monitor on a socket, one conversation: bytes in, bytes out; no sockets here, no echo, no telnet."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from sevkvm import __version__
from sevkvm.monitor.framing import TooLong

if TYPE_CHECKING:
    from sevkvm.monitor.monitor import Monitor

PROMPT: Final = b"(qemu) "  # what scripts wait for
_MOST_NBYTES: Final = 1 << 16


class HmpConversation:
    """``over``: the client said ``quit``."""

    def __init__(self, monitor: Monitor) -> None:
        self.monitor = monitor
        self.over = False
        self._begun = b""

    def greeting(self) -> bytes:
        """A line, and the first prompt."""
        return f"sevkvm {__version__} monitor - type 'help' for more information\r\n".encode() + PROMPT

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that ``data`` completes. Raises TooLong."""
        *lines, self._begun = (self._begun + data).split(b"\n")
        if len(self._begun) > _MOST_NBYTES:
            raise TooLong
        return lines

    def answer(self, line: bytes) -> bytes:
        """What the command prints, and the next prompt. Raises TargetGone when the VMM has died."""
        said = self.monitor.execute(line.rstrip(b"\r").decode(errors="replace"))
        self.over = self.monitor.over
        return said.replace("\n", "\r\n").encode(errors="replace") + (b"" if self.over else PROMPT)

    def passed(self, fds: list[int]) -> None:
        """Nobody asked for descriptors."""
        for fd in fds:
            os.close(fd)

    def close(self) -> None:
        """Nothing is held."""
