"""QEMU's machine protocol, one conversation: messages in, answers out; no sockets here.

The part of QMP that programs use which look into a guest. Source: QEMU docs/interop/qmp-spec.rst and qapi/*.json (7.2);
spellings of errors compared with a live QEMU in tests/kvm/test_monitor_qmp.py.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from sevkvm.monitor import qmpcommands
from sevkvm.monitor.descriptors import Descriptors
from sevkvm.monitor.framing import Framer
from sevkvm.monitor.qmpproblem import QmpProblem

if TYPE_CHECKING:
    from sevkvm.monitor.monitor import Monitor

_NEGOTIATE: Final = "Expecting capabilities negotiation with 'qmp_capabilities'"
_MEMBERS: Final = ("execute", "arguments", "id")


class QmpConversation:
    """``over``: the client asked to leave. Descriptors that came with messages are closed by ``close``."""

    def __init__(self, monitor: Monitor) -> None:
        self.monitor = monitor
        self.descriptors = Descriptors()
        self._framer = Framer()
        self.over = False
        self._ready = False
        self._events: list[bytes] = []

    def greeting(self) -> bytes:
        """What the server says first."""
        version = qmpcommands.version(self.monitor)
        return _packed({"QMP": {"version": version, "capabilities": []}})

    def feed(self, data: bytes) -> list[bytes]:
        """The messages that ``data`` completes. Raises TooLong."""
        return self._framer.feed(data)

    def passed(self, fds: list[int]) -> None:
        """Descriptors that came with what was just received."""
        self.descriptors.passed(fds)

    def answer(self, message: bytes) -> bytes:
        """Events, then the answer to one message. Raises TargetGone when the VMM has died."""
        identity: dict[str, Any] = {}
        try:
            request = _parsed(message)
            if "id" in request:
                identity = {"id": request["id"]}
            said: dict[str, Any] = {"return": self._execute(request)}
        except QmpProblem as problem:
            said = {"error": {"class": problem.kind, "desc": problem.text}}
        events, self._events = self._events, []
        return b"".join(events) + _packed(said | identity)

    def event(self, name: str, data: dict[str, Any]) -> None:
        """Something to tell before the answer."""
        seconds, microseconds = divmod(time.time_ns() // 1000, 1_000_000)
        stamp = {"seconds": seconds, "microseconds": microseconds}
        self._events.append(_packed({"timestamp": stamp, "event": name, "data": data}))

    def close(self) -> None:
        """Nothing of the client's is left with us."""
        self.descriptors.close()

    def _execute(self, request: dict[str, Any]) -> Any:
        name, given = request.get("execute"), request.get("arguments", {})
        if "execute" not in request:
            raise QmpProblem("QMP input lacks member 'execute'")
        if not isinstance(name, str):
            raise QmpProblem("QMP input member 'execute' must be a string")
        for member in request:
            if member not in _MEMBERS:
                raise QmpProblem(f"QMP input member '{member[:100]}' is unexpected")
        if not isinstance(given, dict):
            raise QmpProblem("QMP input member 'arguments' must be an object")
        if name == "qmp_capabilities":
            return self._negotiate()
        command = qmpcommands.COMMANDS.get(name)
        if not self._ready:
            raise QmpProblem(_NEGOTIATE, "CommandNotFound")
        if command is None:
            raise QmpProblem(f"The command {name[:100]} has not been found", "CommandNotFound")
        return self._run(command, given)

    def _negotiate(self) -> dict[str, Any]:
        if self._ready:
            raise QmpProblem(
                "Capabilities negotiation is already complete, command ignored", "CommandNotFound"
            )
        self._ready = True
        return {}

    def _run(self, command: Callable[..., Any], given: dict[str, Any]) -> Any:
        from sevkvm import errors
        from sevkvm.monitor.problem import CommandProblem

        try:
            return command(self, given)
        except CommandProblem as problem:
            raise QmpProblem(problem.text.removeprefix("Error: ")) from problem
        except errors.TargetGone:
            raise
        except errors.SevKvmError as error:
            raise QmpProblem(f"{error.message} ({error.help})" if error.help else error.message) from error


def _parsed(message: bytes) -> dict[str, Any]:
    try:
        request = json.loads(message)
    except (ValueError, RecursionError):
        raise QmpProblem("JSON parse error") from None
    if not isinstance(request, dict):
        raise QmpProblem("QMP input must be a JSON object")
    return request


def _packed(message: dict[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\r\n"
