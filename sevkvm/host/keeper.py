"""A VM that is stopped through its monitor is set going again, also if we are killed: a process of its own sees to it.

It holds the connection to the monitor, stops the VM, passes questions on, and continues the VM when it is told to, or
when our end of its socket closes, which is when we are gone. It is in a session of its own and ignores what a terminal
sends. Whoever kills both at once leaves the VM stopped.
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final

from sevkvm import errors
from sevkvm.host.qmp import Monitor, QmpMonitor, as_text

_START: Final = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from sevkvm.host.keeper import main; main()"
)
_PATIENCE_SECONDS: Final = 60.0  # to get the VM going again
_RETRY_SECONDS: Final = 0.2
_PASSED_ON: Final = ("AttachError", "TargetTimeout", "ProtocolError", "SevKvmError")


class KeptMonitor:
    """A Monitor through such a process. ``address`` is a QMP socket, or ``domain`` one of libvirt's.

    ``timeout`` (seconds) bounds each of its waits for the monitor.
    """

    def __init__(self, address: str | None, domain: str | None, timeout: float) -> None:
        ours, theirs = socket.socketpair()
        path = json.dumps([entry for entry in sys.path if entry])
        asked = json.dumps({"address": address, "domain": domain, "timeout": timeout})
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-c", _START, path, asked],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as error:
            ours.close()
            raise errors.AttachError(f"no process can be started to hold the monitor: {error}") from error
        finally:
            theirs.close()
        ours.settimeout(6 * timeout + _PATIENCE_SECONDS)
        self._socket = ours
        self._stream = ours.makefile("rwb")

    def stop(self) -> bool:
        """Stop the VM; False if it stood still already, and will then be left as it is."""
        return bool(self._ask({"do": "stop"}))

    def cont(self) -> None:
        """Let it run, if it was we who stopped it."""
        self._ask({"do": "cont"})

    def hmp(self, command: str) -> str:
        """As Monitor's."""
        return as_text(command, self._ask({"do": "hmp", "command": command}))

    def execute(self, command: str, arguments: Mapping[str, object] | None = None) -> object:
        """As Monitor's."""
        return self._ask({"do": "execute", "command": command, "arguments": arguments})

    def close(self) -> None:
        """Hang up, which lets the VM run; the process ends by itself."""
        with suppress(OSError):
            self._stream.close()
        self._socket.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_PATIENCE_SECONDS)

    def _ask(self, request: dict[str, object]) -> object:
        try:
            self._stream.write(json.dumps(request).encode() + b"\n")
            self._stream.flush()
            line = self._stream.readline()
            answer = json.loads(line) if line else None
        except (OSError, ValueError) as error:
            raise errors.AttachError(
                f"the process that holds the monitor does not answer: {error}"
            ) from error
        if answer is None:
            raise errors.AttachError(
                "the process that holds the monitor has ended",
                help="if the VM stands still, `cont` in its monitor lets it run (virsh resume)",
            )
        if "error" in answer:
            kind, message, help = answer["error"]
            raised: errors.SevKvmError = getattr(errors, kind)(message, help=help)
            raise raised
        return answer["answer"]


class Keeper:
    """What runs in the process: one request after another, and the VM running in the end."""

    def __init__(self, connect: Callable[[], Monitor]) -> None:
        self._connect = connect
        self._monitor: Monitor | None = None
        self.stopped = False

    def answer(self, request: dict[str, Any]) -> object:
        """Carry out one request. Raises SevKvmError."""
        match request["do"]:
            case "stop":
                return self._stop()
            case "cont":
                self.let_run()
                return None
            case "hmp":
                return self._live().hmp(request["command"])
            case _:
                return self._live().execute(request["command"], request["arguments"])

    def let_run(self) -> None:
        """Continue the VM if it was stopped here, trying for a minute."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while self.stopped:
            try:
                # somebody else may have done something with it since
                if self._status().get("status") == "paused":
                    self._live().execute("cont")
                self.stopped = False
            except errors.SevKvmError:
                self._hang_up()
                if time.monotonic() >= deadline:
                    raise
                time.sleep(_RETRY_SECONDS)

    def close(self) -> None:
        """The VM runs, or cannot be reached."""
        with suppress(errors.SevKvmError):
            self.let_run()
        self._hang_up()

    def _stop(self) -> bool:
        if self._status().get("running") is not True:
            return False
        self.stopped = True
        self._live().execute("stop")
        if self._status().get("running") is not False:
            raise errors.ProtocolError("the monitor was told to stop the VM, and it runs")
        return True

    def _status(self) -> dict[str, Any]:
        status = self._live().execute("query-status")
        if not isinstance(status, dict):
            raise errors.ProtocolError("query-status: not an object")
        return status

    def _live(self) -> Monitor:
        if self._monitor is None:
            self._monitor = self._connect()
        return self._monitor

    def _hang_up(self) -> None:
        monitor, self._monitor = self._monitor, None
        if monitor is not None:
            monitor.close()


def _connector(asked: dict[str, Any]) -> Callable[[], Monitor]:
    if asked["domain"] is None:
        return lambda: QmpMonitor(asked["address"], timeout=asked["timeout"])
    from sevkvm.host.virsh import VirshMonitor

    return lambda: VirshMonitor(asked["domain"], timeout=asked["timeout"])


def _reply(keeper: Keeper, line: bytes) -> dict[str, object]:
    try:
        return {"answer": keeper.answer(json.loads(line))}
    except errors.SevKvmError as error:
        kind = next(name for name in _PASSED_ON if isinstance(error, getattr(errors, name)))
        return {"error": (kind, str(error), error.help)}


def main() -> None:
    """The process: its stdin is the socket."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    keeper = Keeper(_connector(json.loads(sys.argv[2])))
    try:
        with socket.socket(fileno=0) as ours, ours.makefile("rwb") as stream:
            for line in stream:
                stream.write(json.dumps(_reply(keeper, line)).encode() + b"\n")
                stream.flush()
    except (OSError, ValueError):
        pass  # whoever asked is gone
    finally:
        keeper.close()
