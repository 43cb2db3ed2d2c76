"""Clients on sockets, served in turn by one thread: ptrace belongs to the thread that attached.

A command runs to its end before the next client's; its answer is bounded, and sent as fast as its client reads, while
the guest runs and others are served.
"""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Callable
from typing import Final

from sevkvm.monitor.client import Client, Conversation

MOST_CLIENTS: Final = 16
_TICK_SECONDS: Final = 1.0


class Server:
    """Serves until it is interrupted, or the guest's VMM ends. ``begin`` makes a conversation for a new client.

    ``check`` is called now and then, and raises TargetGone when the VMM has ended: its death cannot be waited for, it
    is not complete while we are attached.
    """

    def __init__(
        self,
        listener: socket.socket,
        begin: Callable[[], Conversation],
        check: Callable[[], None] = lambda: None,
    ) -> None:
        listener.setblocking(False)
        self._listener = listener
        self._begin = begin
        self._check = check
        self._clients: list[Client] = []

    def serve(self) -> None:
        """Raises what ``check`` raises; every client is hung up on the way out."""
        try:
            while True:
                self._turn()
        finally:
            for client in self._clients:
                client.close()

    def _turn(self) -> None:
        self._clients = [client for client in self._clients if not client.closed]
        with selectors.PollSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            for client in self._clients:
                mask = selectors.EVENT_READ * client.reads | selectors.EVENT_WRITE * client.writes
                if mask:
                    selector.register(client.socket, mask, client)
            busy = any(client.works for client in self._clients)
            ready = selector.select(0 if busy else _TICK_SECONDS)
        if not ready and not busy:
            self._check()
        for key, mask in ready:
            if key.data is None:
                self._accept()
            else:
                _move(key.data, mask)
        now = time.monotonic()
        for client in self._clients:
            if client.works:
                client.work()
            elif client.stalled(now):
                client.close()

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return  # it has left again
        if len(self._clients) >= MOST_CLIENTS:
            connection.close()
            return
        self._clients.append(Client(connection, self._begin()))


def _move(client: Client, mask: int) -> None:
    if mask & selectors.EVENT_WRITE:
        client.send()
    if mask & selectors.EVENT_READ and not client.closed:
        client.receive()
