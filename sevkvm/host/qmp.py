"""The VMM's monitor: the protocol that askers rely on, and QEMU's QMP through the qemu.qmp library.

Synchronous, every wait bounded. What the monitor says is hostile input: the library bounds its size (10 MiB a
message), whoever asks checks its types.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
from collections.abc import Coroutine, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from sevkvm import errors

_SUN_PATH_NBYTES: Final = 107  # sockaddr_un of linux/un.h, without the final zero
_T = TypeVar("_T")


class Monitor(Protocol):
    """Somebody who answers for the VMM. Raises TargetTimeout, MonitorRefused, ProtocolError, AttachError."""

    def hmp(self, command: str) -> str:
        """What QEMU's human monitor prints for a command, lines ended by ``\\n``."""
        ...

    def execute(self, command: str, arguments: Mapping[str, object] | None = None) -> object:
        """The answer to a QMP command."""
        ...

    def close(self) -> None:
        """Hang up."""
        ...


def as_text(command: str, answer: object) -> str:
    """An HMP answer as text, or ProtocolError."""
    if not isinstance(answer, str):
        raise errors.ProtocolError(
            f"the monitor answered {command!r} with a {type(answer).__name__}, not text"
        )
    return answer.replace("\r\n", "\n")


class QmpMonitor:
    """A QMP socket: a path, ``unix:PATH``, or ``[tcp:]HOST:PORT``. ``timeout`` (seconds) bounds each wait."""

    def __init__(self, address: str, *, timeout: float = 5.0) -> None:
        # the library takes a tenth of a second to import: only who talks QMP pays
        from qemu.qmp import QMPClient

        logging.getLogger("qemu.qmp").addHandler(logging.NullHandler())  # errors are raised, not printed
        self.address = address
        self._timeout = timeout
        self._loop = asyncio.new_event_loop()
        self._client = QMPClient("sevkvm")
        self._client.events.event_filter = lambda event: False  # nobody reads events: do not collect them
        try:
            self._connect()
        except BaseException:
            self.close()
            raise

    def hmp(self, command: str) -> str:
        """Through ``human-monitor-command``; what HMP calls an error is text like any other."""
        return as_text(command, self.execute("human-monitor-command", {"command-line": command}))

    def execute(self, command: str, arguments: Mapping[str, object] | None = None) -> object:
        """The command's ``return`` value."""
        from qemu.qmp import ExecuteError

        try:
            return self._run(self._client.execute(command, arguments))
        except asyncio.TimeoutError:
            raise errors.TargetTimeout(
                f"the monitor {self.address} has not answered {command} in {self._timeout:g} s",
                help="the VMM's main thread may be stopped or stuck; --timeout allows more",
            ) from None
        except ExecuteError as error:
            raise errors.MonitorRefused(command, str(error)[:1000]) from error
        except Exception as error:  # the library passes on whatever a bad answer made it stumble over
            raise errors.ProtocolError(
                f"the monitor {self.address} broke off at {command}: {_why(error)}"
            ) from error

    def close(self) -> None:
        """Hang up and end the library's tasks; safe to call twice."""
        if self._loop.is_closed():
            return
        with suppress(Exception):  # how the conversation ended no longer matters
            self._run(self._client.disconnect())
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        if tasks:
            with suppress(Exception):
                self._run(asyncio.wait(tasks))
        self._loop.close()

    def _connect(self) -> None:
        with ExitStack() as stack:
            try:
                self._run(self._client.connect(_address(self.address, stack)))
            except asyncio.TimeoutError:
                raise errors.TargetTimeout(
                    f"the monitor {self.address} has not greeted in {self._timeout:g} s",
                    help="QEMU serves one client on each QMP socket: another one may be connected. Give QEMU a second"
                    " -qmp unix:PATH,server=on,wait=off; under libvirt use --libvirt DOMAIN",
                ) from None
            except Exception as error:
                cause = error.__cause__ or error
                if isinstance(cause, OSError) and not isinstance(cause, errors.SevKvmError):
                    raise errors.AttachError(
                        f"cannot connect to the monitor {self.address}: {cause.strerror or cause}",
                        help="--qmp takes the path of a QMP socket on which QEMU listens, or HOST:PORT",
                    ) from error
                raise errors.ProtocolError(
                    f"{self.address} does not speak QMP: {_why(cause)}",
                    help="--qmp takes a QMP socket (-qmp ...,server=on), not QEMU's human monitor",
                ) from error

    def _run(self, question: Coroutine[Any, Any, _T]) -> _T:
        return self._loop.run_until_complete(asyncio.wait_for(question, self._timeout))


def _address(text: str, stack: ExitStack) -> str | tuple[str, int]:
    """For the library; a path too long for a socket address goes through a descriptor of its directory."""
    tcp = re.fullmatch(r"(?:tcp:)?\[?([^/]*?)\]?:([0-9]{1,5})", text)
    if tcp and not text.startswith("unix:") and not Path(text).exists():
        return tcp[1] or "localhost", int(tcp[2])
    path = text.removeprefix("unix:")
    if len(os.fsencode(path)) <= _SUN_PATH_NBYTES:
        return path
    parent, _, name = path.rpartition("/")
    directory = os.open(parent or "/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    stack.callback(os.close, directory)
    return f"/proc/self/fd/{directory}/{name}"


def _why(error: BaseException) -> str:
    """One short line: the text comes from the other side."""
    return json.dumps(str(error)[:200] or type(error).__name__, ensure_ascii=True)
