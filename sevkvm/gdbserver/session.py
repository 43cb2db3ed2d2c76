"""One client's conversation, without I/O: a packet in, its answers out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from sevkvm import errors
from sevkvm.gdbserver.commands import find
from sevkvm.gdbserver.fields import Malformed, refusal
from sevkvm.gdbserver.target import Refused

if TYPE_CHECKING:
    import socket

    from sevkvm.gdbserver.target import Target

Monitor = Callable[[str, int], Iterable[str]]
"""``monitor COMMAND`` of gdb, about a thread: text, in as many pieces as it comes in; SevKvmError if it fails."""

Answer = bytes | Iterable[bytes] | None
"""One packet, several, or none for now: the guest runs."""

Handler = Callable[["Session", bytes], Answer]  # quoted: made before the class is
Say = Callable[[str], None]


class Session:
    """State of one connection. The guest is stopped by the first packet, never by a bare connection.

    ``thread``: whose registers and page tables are asked for. ``physical``: addresses are gpas. ``running``: gdb waits
    for a stop. ``ended``: nothing more to say. ``say``: tells our own user what gdb has no words for, each thing once.
    """

    def __init__(self, target: Target, monitor: Monitor | None = None, say: Say = lambda text: None) -> None:
        self.target = target
        self.monitor = monitor
        self.thread = target.first_thread
        self.physical = False
        self.running = False
        self.detached = False
        self.extended = False
        self.no_ack = False
        self.ended = False
        self._say = say
        self._said: set[str] = set()

    def answer(self, packet: bytes) -> Iterator[bytes]:
        """The answers to a packet, unframed, each made when it is asked for. TargetGone passes."""
        if self.running:
            yield refusal("the guest runs: interrupt it first")
            return
        try:
            if not self.detached:
                self._prepare()
            answer = self._handle(packet)
            if isinstance(answer, bytes):
                yield answer
            elif answer is not None:
                yield from answer
        except Malformed as problem:
            yield refusal(f"malformed packet: {problem}")
        except Refused as reason:
            self.tell(str(reason))
            yield refusal(str(reason))
        except errors.TargetGone:
            raise
        except errors.SevKvmError as error:
            self.tell(error.message)
            yield refusal(error.message)

    def interrupt(self) -> Iterator[bytes]:
        """Ctrl-C: stop, and say so; nothing if nothing runs."""
        if self.running:
            self.target.stop()
            self.running = False
            yield self.stopped(2)

    @property
    def background(self) -> socket.socket | None:
        """Readable when there is something to say that no packet asked for: then call ``arrived``."""
        return None

    def arrived(self) -> Iterator[bytes]:
        """What there is to say."""
        return iter(())

    def stopped(self, signal: int = 5) -> bytes:
        """The answer that says that the guest stands still, and with which signal's number."""
        return b"T%02xthread:%x;" % (signal, self.thread)

    def tell(self, what: str) -> None:
        """Tell our user; once a connection."""
        if what not in self._said and len(self._said) < 20:
            self._said.add(what)
            self._say(what)

    def close(self) -> None:
        """The client is gone: the guest runs on."""
        self.ended = True
        self.target.let_go()

    def _prepare(self) -> None:
        self.target.stop()

    def _handle(self, packet: bytes) -> Answer:
        handler, rest = find(packet)
        return handler(self, rest)
