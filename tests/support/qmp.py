"""A small QMP client of the tests' own: one socket, one request at a time, every wait bounded."""

from __future__ import annotations

import json
import socket
from typing import Any


class QmpError(Exception):
    """The monitor answered with an error, or not at all."""


class QmpClient:
    """Connects, negotiates, and stays connected until closed; QEMU serves one client a socket."""

    def __init__(self, path: str, timeout: float = 20.0) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout)
        try:
            self._socket.connect(path)
            self._lines = self._socket.makefile("rb")
            greeting = self._message()
            if "QMP" not in greeting:
                raise QmpError(f"not a QMP greeting: {greeting}")
            self.execute("qmp_capabilities")
        except BaseException:
            self._socket.close()
            raise

    def _message(self) -> dict[str, Any]:
        line = self._lines.readline(1 << 24)
        if not line:
            raise QmpError("the monitor closed the connection")
        message: dict[str, Any] = json.loads(line)
        return message

    def execute(self, command: str, **arguments: Any) -> Any:
        """The command's ``return``; QmpError if it failed. Events that arrive meanwhile are dropped."""
        request = json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n"
        self._socket.sendall(request)
        for _ in range(1000):
            message = self._message()
            if "error" in message:
                raise QmpError(f"{command}: {message['error']}")
            if "return" in message:
                return message["return"]
        raise QmpError(f"{command}: 1000 events and no answer")

    def hmp(self, line: str) -> str:
        """What the human monitor prints for ``line``, with \\r\\n made \\n."""
        answer: str = self.execute("human-monitor-command", **{"command-line": line})
        return answer.replace("\r\n", "\n")

    def close(self) -> None:
        """Hang up."""
        self._lines.close()
        self._socket.close()
