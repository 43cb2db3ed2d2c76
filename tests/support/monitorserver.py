"""A QMP server in a thread that says whatever a test wants it to say, for one client."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_VERSION = b'{"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "Debian 1:7.2"}'
GREETING = b'{"QMP": {"version": ' + _VERSION + b', "capabilities": ["oob"]}}\r\n'

# from the request, as a dict, to the bytes of the answer; None hangs up
Answer = Callable[[dict[str, object]], bytes | None]


def reply(request: dict[str, object], value: object) -> bytes:
    """A well-formed answer; the handshake is a request without an id."""
    identity = {"id": request["id"]} if "id" in request else {}
    return json.dumps({"return": value, **identity}).encode() + b"\r\n"


def _requests(client: socket.socket) -> Iterator[dict[str, Any]]:
    """Requests follow one another without line feeds, as QEMU takes them."""
    text = ""
    while data := client.recv(65536):
        text += data.decode()
        with suppress(json.JSONDecodeError):  # not all of it yet
            while text:
                request, end = json.JSONDecoder().raw_decode(text)
                text = text[end:].lstrip()
                yield request


@contextmanager
def monitor_server(path: Path, answer: Answer, greeting: bytes | None = GREETING) -> Iterator[None]:
    """Listen at ``path``. Greeting None: accept the connection and keep silent; ``answer`` is not asked about the
    handshake."""
    listener = socket.socket(socket.AF_UNIX)
    listener.settimeout(20)
    listener.bind(str(path))
    listener.listen(1)
    over = threading.Event()

    def serve() -> None:
        try:
            with listener.accept()[0] as client:
                client.settimeout(20)
                if greeting is None:
                    over.wait(20)
                    return
                client.sendall(greeting)
                for request in _requests(client):
                    handshake = request["execute"] == "qmp_capabilities"
                    said = reply(request, {}) if handshake else answer(request)
                    if said is None:
                        return
                    client.sendall(said)
        except OSError:
            return  # the client hung up in the middle, as it may

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        over.set()
        # wakes an accept() that nobody will ever satisfy
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(20)
        assert not thread.is_alive()
