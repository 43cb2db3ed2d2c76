"""One client of the server: what it has sent and not been answered, what it has been sent and not read."""

from __future__ import annotations

import array
import os
import socket
import time
from collections import deque
from typing import Final, Protocol

from sevkvm.monitor.framing import TooLong

_RECEIVE_NBYTES: Final = 1 << 16
_MOST_FDS: Final = 8
_MOST_WAITING: Final = 64  # messages; a client that has sent more is not read from
STALL_SECONDS: Final = 60.0


class Conversation(Protocol):
    """Bytes and meaning, without a socket."""

    over: bool

    def greeting(self) -> bytes:
        """Said first."""
        ...

    def feed(self, data: bytes) -> list[bytes]:
        """Messages that are complete now; TooLong."""
        ...

    def answer(self, message: bytes) -> bytes:
        """Work on one message."""
        ...

    def passed(self, fds: list[int]) -> None:
        """Descriptors came along; whoever takes them closes them."""
        ...

    def close(self) -> None:
        """The client is gone."""
        ...


class Client:
    """Nothing here blocks. ``closed`` tells the server to forget it."""

    def __init__(self, connection: socket.socket, conversation: Conversation) -> None:
        connection.setblocking(False)
        self.socket = connection
        self.closed = False
        self._talk = conversation
        self._messages: deque[bytes] = deque()
        self._out = memoryview(b"")
        self._ended = False  # nothing more will be received
        self._moved = time.monotonic()
        self._say(conversation.greeting())

    @property
    def reads(self) -> bool:
        """It may send more: it is not behind with its own reading, nor we with its messages."""
        return not self._out and not self._ended and len(self._messages) < _MOST_WAITING

    @property
    def writes(self) -> bool:
        """There is something for it to read."""
        return bool(self._out)

    @property
    def works(self) -> bool:
        """A message waits for its answer, and the last answer has been taken."""
        return bool(self._messages) and not self._out and not self.closed

    def receive(self) -> None:
        """Take what there is."""
        try:
            data, ancillary, _, _ = self.socket.recvmsg(
                _RECEIVE_NBYTES, socket.CMSG_SPACE(_MOST_FDS * array.array("i").itemsize)
            )
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        self._talk.passed(_descriptors(ancillary))
        if not data:
            self._ended = True
            self._finish()
            return
        try:
            self._messages.extend(self._talk.feed(data))
        except TooLong:
            self.close()

    def work(self) -> None:
        """Answer one message."""
        self._say(self._talk.answer(self._messages.popleft()))

    def send(self) -> None:
        """Send what it takes."""
        try:
            done = self.socket.send(self._out)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        self._out = self._out[done:]
        self._moved = time.monotonic()
        self._finish()

    def stalled(self, now: float) -> bool:
        """It has not read for so long that it has lost its answer."""
        return bool(self._out) and now - self._moved > STALL_SECONDS

    def close(self) -> None:
        """Hang up; safe to call twice."""
        if not self.closed:
            self.closed = True
            self._talk.close()
            self.socket.close()

    def _say(self, data: bytes) -> None:
        self._out = memoryview(data)
        self._moved = time.monotonic()
        if data:
            self.send()
        else:
            self._finish()

    def _finish(self) -> None:
        if not self._out and (self._talk.over or (self._ended and not self._messages)):
            self.close()


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    fds = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    for fd in fds:
        os.set_inheritable(fd, False)
    return list(fds)
