"""Sockets: one client at a time, every wait bounded but the one for the user's next command.

One thread does it all, for ptrace belongs to it. A client that goes away, in whatever way, lets the guest run.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from sevkvm import errors
from sevkvm.gdbserver.packet import Acknowledgement, Decoder, Event, Interrupt, Packet, ProtocolFault, frame
from sevkvm.gdbserver.session import Say, Session

_RECEIVE_NBYTES: Final = 1 << 16
_MOST_FAULTS: Final = 16  # in a row: gdb gives up after three
_MOST_RESENT: Final = 5
_PART_SECONDS: Final = 1.0
_LOOK_SECONDS: Final = 0.5  # between looks whether the VMM is still there


@dataclass(frozen=True)
class Limits:
    """Seconds. ``first_packet``: for a client to show that it is gdb; ``send``: for it to take an answer.

    ``stop``: how long the guest may stand still at a time, or None for as long as the client likes.
    """

    first_packet: float = 10.0
    send: float = 10.0
    stop: float | None = None


class _Left(Exception):
    """The conversation is over; the text says why, or is empty for an ordinary end."""


class Server:
    """Serves clients of ``listener``, one after the other. ``alive``: has the VMM not ended?"""

    def __init__(
        self,
        listener: socket.socket,
        new_session: Callable[[], Session],
        *,
        limits: Limits,
        say: Say,
        alive: Callable[[], bool] = lambda: True,
    ) -> None:
        self._listener = listener
        self._new_session = new_session
        self._limits = limits
        self._say = say
        self._alive = alive

    def serve(self, *, once: bool = False) -> None:
        """Until interrupted, or with ``once`` until the first client that spoke to us left; TargetGone."""
        spoken = False
        while not (once and spoken):
            _wait([self._listener], self._alive, None)
            client, _ = self._listener.accept()
            with client:
                talk = _Conversation(client, self._new_session(), self._limits, self._alive)
                spoken = talk.hold(self._say)


class _Conversation:
    """One client."""

    def __init__(
        self, client: socket.socket, session: Session, limits: Limits, alive: Callable[[], bool]
    ) -> None:
        self._client = client
        self._session = session
        self._limits = limits
        self._alive = alive
        self._decoder = Decoder()
        self._last = b""  # sent, in case it is asked for again
        self._resent = 0
        self._faults = 0
        self._spoken = False
        self._deadline: float | None = time.monotonic() + limits.first_packet
        client.settimeout(limits.send)
        if client.family != socket.AF_UNIX:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def hold(self, say: Say) -> bool:
        """Talk until it ends; True if the other side spoke the protocol."""
        try:
            while not self._session.ended:
                self._receive()
            self._session.close()
            self._part()
        except _Left as reason:
            if str(reason):
                say(f"client dropped: {reason}")
        except errors.TargetGone:
            with suppress(OSError):
                self._send([b"W00"] if self._session.running else [])
            raise
        except errors.SevKvmError as error:  # of the VMM's stub, while nobody had asked
            say(f"client dropped: {error.message}")
        except TimeoutError:
            say(f"client dropped: it took no answer for {self._limits.send:g} s")
        except OSError:
            pass  # it went away
        finally:
            try:
                self._session.close()
            finally:
                # a signal may have cut that short, and there is no second: what is undone twice is undone
                self._session.close()
        return self._spoken

    def _receive(self) -> None:
        background = self._session.background
        ready = _wait([self._client, *([background] if background else [])], self._alive, self._deadline)
        self._check_deadline()
        if background is not None and background.fileno() in ready:
            self._send(self._session.arrived())
            self._set_deadline()
        if self._client.fileno() not in ready:
            return
        data = self._client.recv(_RECEIVE_NBYTES)
        if not data:
            raise _Left
        self._decoder.receive_data(data)
        event = self._decoder.next_event()
        while event is not None and not self._session.ended:
            self._take(event)
            event = self._decoder.next_event()

    def _part(self) -> None:
        """Wait a moment for the client to acknowledge the last answer: gdb complains if there is nobody to tell."""
        if self._session.detached and not self._session.no_ack:
            self._client.settimeout(_PART_SECONDS)
            with suppress(OSError):
                self._client.recv(1)

    def _take(self, event: Event) -> None:
        if isinstance(event, Packet):
            self._packet(event.data)
        elif isinstance(event, Interrupt):
            self._send(self._session.interrupt())
            self._set_deadline()
        elif isinstance(event, ProtocolFault):
            self._fault(event)
        elif isinstance(event, Acknowledgement) and not event.received and self._last:
            self._resent += 1
            if self._resent > _MOST_RESENT:
                raise _Left("it understands no answer")
            self._client.sendall(self._last)

    def _packet(self, data: bytes) -> None:
        self._check_deadline()  # a client that never pauses does not get past its time either
        self._faults = 0
        if not self._session.no_ack:
            self._client.sendall(b"+")
        self._send(self._session.answer(data))
        if not self._spoken:
            self._spoken, self._deadline = True, None
        self._set_deadline()

    def _fault(self, fault: ProtocolFault) -> None:
        self._faults += 1
        if fault.fatal or self._session.no_ack or self._faults > _MOST_FAULTS:
            raise _Left(fault.reason)
        self._client.sendall(b"-")

    def _set_deadline(self) -> None:
        """A stop has an end from its beginning on, whatever is asked meanwhile."""
        if not self._spoken:
            return  # no Ctrl-C shows that it is gdb
        if self._session.running or self._session.detached or self._limits.stop is None:
            self._deadline = None
        elif self._deadline is None:
            self._deadline = time.monotonic() + self._limits.stop

    def _check_deadline(self) -> None:
        if self._deadline is None or time.monotonic() < self._deadline:
            return
        if not self._spoken:
            raise _Left(f"it said nothing for {self._limits.first_packet:g} s")
        raise _Left(f"the guest stood still for {self._limits.stop:g} s (--max-stop)")

    def _send(self, answers: Iterable[bytes]) -> None:
        for answer in answers:
            self._last, self._resent = frame(answer), 0
            self._client.sendall(self._last)


def _wait(sockets: Iterable[socket.socket], alive: Callable[[], bool], deadline: float | None) -> set[int]:
    """Until there is something to read from the descriptors returned, or the deadline came; TargetGone.

    A pidfd would not tell: while we trace one of its threads, a process that was killed is not over.
    """
    poll = select.poll()
    for each in sockets:
        poll.register(each, select.POLLIN)
    while alive():
        left = (
            _LOOK_SECONDS if deadline is None else min(_LOOK_SECONDS, max(0.0, deadline - time.monotonic()))
        )
        ready = {fd for fd, _ in poll.poll(left * 1000)}
        if ready or (deadline is not None and time.monotonic() >= deadline):
            return ready
    raise errors.TargetGone("the VMM ended")
