"""A client of packets, for what gdb would never do."""

from __future__ import annotations

import socket
from contextlib import suppress

from sevkvm.gdbserver.packet import Decoder, Packet, frame
from tests.support.gdb import GdbServer


class Client:
    """One connection to a Unix socket, every wait bounded."""

    def __init__(self, server: GdbServer) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(20)
        self.socket.connect(server.target)
        self._decoder = Decoder()

    def ask(self, packet: bytes) -> bytes:
        """The answer to a packet."""
        self.socket.sendall(frame(packet))
        return self.answer()

    def answer(self) -> bytes:
        """The next packet."""
        while True:
            event = self._decoder.next_event()
            if isinstance(event, Packet):
                return event.data
            if event is None:
                data = self.socket.recv(4096)
                assert data, "the server hung up"
                self._decoder.receive_data(data)

    def hung_up(self) -> bool:
        """The server closes; what it sent before is of no interest."""
        with suppress(ConnectionResetError):  # there was more of ours to read
            while self.socket.recv(4096):
                pass
        return True

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: object) -> None:
        self.socket.close()
