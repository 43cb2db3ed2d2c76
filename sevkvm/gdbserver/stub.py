"""A client of the VMM's own gdb stub: requests with an answer, and the answer that comes when the guest stops."""

from __future__ import annotations

import select
import socket
import time
from collections import deque
from typing import TYPE_CHECKING, Final

from sevkvm import errors
from sevkvm.gdbserver.listen import UnixAddress
from sevkvm.gdbserver.packet import Decoder, Packet, ProtocolFault, escape, frame

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sevkvm.gdbserver.listen import TcpAddress

MOST_REQUEST: Final = 4000  # QEMU drops what is longer than 4096 (gdbstub.c, MAX_PACKET_LENGTH)
_INTERRUPT: Final = b"\x03"


class Stub:
    """One connection; each wait takes ``timeout`` seconds at most. Raises TargetGone, TargetTimeout, ProtocolError.

    QEMU stops its guest when somebody connects, and leaves it so when he hangs up: detach (``D``) before.
    """

    def __init__(self, address: UnixAddress | TcpAddress, timeout: float) -> None:
        self._timeout = timeout
        self._decoder = Decoder()
        self._packets: deque[bytes] = deque()
        unix = isinstance(address, UnixAddress)
        family = socket.AF_UNIX if unix else socket.AF_INET6 if ":" in address.for_gdb[:1] else socket.AF_INET
        self.socket = socket.socket(family, socket.SOCK_STREAM)
        self.socket.settimeout(timeout)
        try:
            self.socket.connect(address.path if isinstance(address, UnixAddress) else tuple(address))
        except OSError as error:
            self.socket.close()
            raise errors.AttachError(
                f"the VMM's gdb stub at {address} cannot be reached: {error.strerror or error}",
                help="start it with `gdbserver unix:PATH,server=on,wait=off` in QEMU's monitor, or -gdb",
            ) from error

    def request(self, packet: bytes) -> bytes:
        """Its answer."""
        self.send(packet)
        return self.answer()

    def send(self, packet: bytes) -> None:
        """Without waiting for an answer."""
        self._write(frame(escape(packet)))

    def interrupt(self) -> None:
        """Ctrl-C: an answer comes when the guest stands."""
        self._write(_INTERRUPT)

    def answer(self) -> bytes:
        """The next packet."""
        deadline = time.monotonic() + self._timeout
        while not self._packets:
            self._receive(deadline)
        return self._packets.popleft()

    def arrived(self) -> Iterator[bytes]:
        """What is there when the socket is readable."""
        self._receive(time.monotonic() + self._timeout)
        while self._packets:
            yield self._packets.popleft()

    def close(self) -> None:
        """Hang up."""
        self.socket.close()

    def _receive(self, deadline: float) -> None:
        poll = select.poll()
        poll.register(self.socket, select.POLLIN)
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise errors.TargetTimeout(f"the VMM's gdb stub has not answered for {self._timeout:g} s")
        try:
            data = self.socket.recv(1 << 16)
        except OSError as error:
            raise errors.TargetGone(f"the VMM's gdb stub hung up: {error.strerror}") from error
        if not data:
            raise errors.TargetGone("the VMM's gdb stub hung up")
        self._decoder.receive_data(data)
        while (event := self._decoder.next_event()) is not None:
            if isinstance(event, Packet):
                self._write(b"+")
                self._packets.append(event.data)
            elif isinstance(event, ProtocolFault):
                raise errors.ProtocolError(f"the VMM's gdb stub sent {event.reason}")

    def _write(self, data: bytes) -> None:
        try:
            self.socket.sendall(data)
        except TimeoutError as error:
            raise errors.TargetTimeout(f"the VMM's gdb stub takes nothing for {self._timeout:g} s") from error
        except OSError as error:
            raise errors.TargetGone(f"the VMM's gdb stub hung up: {error.strerror}") from error
