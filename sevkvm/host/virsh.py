"""The monitor of a VMM under libvirt, which holds its QMP socket: through ``virsh qemu-monitor-command``."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import time
from collections.abc import Mapping
from typing import IO, Final

from sevkvm import errors
from sevkvm.host.qmp import as_text

_ANSWER_NBYTES: Final = 16 << 20
_ERROR_NBYTES: Final = 64 << 10
_PIECE_NBYTES: Final = 64 << 10
_HELP: Final = (
    "`virsh list` shows the domains; LIBVIRT_DEFAULT_URI chooses the connection (qemu:///system as root)"
)


class VirshMonitor:
    """A libvirt domain by name, id or UUID; each question runs virsh once, for ``timeout`` seconds at most."""

    def __init__(self, domain: str, *, timeout: float = 5.0) -> None:
        if not domain or domain.startswith("-"):
            raise errors.UsageError(f"--libvirt {domain!r} is not the name of a domain", help=_HELP)
        self.domain = domain
        self._timeout = timeout

    def hmp(self, command: str) -> str:
        """What QEMU's human monitor prints."""
        # virsh ends what it prints with a line feed of its own
        return as_text(command, self._ask(["--hmp", command]).removesuffix("\n"))

    def execute(self, command: str, arguments: Mapping[str, object] | None = None) -> object:
        """The command's ``return`` value."""
        request: dict[str, object] = {"execute": command}
        if arguments is not None:
            request["arguments"] = dict(arguments)
        text = self._ask([json.dumps(request)])
        try:
            answer = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise errors.ProtocolError(f"virsh answered {command} with something that is not JSON") from error
        if isinstance(answer, dict) and "return" in answer:
            return answer["return"]
        if isinstance(answer, dict) and isinstance(answer.get("error"), dict):
            raise errors.MonitorRefused(command, str(answer["error"].get("desc", answer["error"]))[:1000])
        raise errors.ProtocolError(f"virsh answered {command} with neither `return` nor `error`")

    def close(self) -> None:
        """Nothing is kept open between questions."""

    def _ask(self, question: list[str]) -> str:
        argv = ["virsh", "--quiet", "qemu-monitor-command", self.domain, *question]
        environment = {**os.environ, "LC_ALL": "C"}
        try:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment,
            )
        except OSError as error:
            raise errors.AttachError(
                f"cannot run virsh: {error.strerror}", help="install libvirt's clients, or use --qmp SOCKET"
            ) from error
        with process:
            try:
                output, complaint = self._collect(process)
                status = process.wait(self._timeout)
            except (subprocess.TimeoutExpired, errors.TargetTimeout):
                raise errors.TargetTimeout(
                    f"virsh has not answered in {self._timeout:g} s",
                    help="is libvirtd up, and the domain's QEMU responsive? --timeout allows more",
                ) from None
            finally:
                process.kill()  # before the pipes are waited for; it has ended by itself if all went well
        if status != 0:
            said = complaint.decode(errors="replace").strip().removeprefix("error: ")[:500]
            raise errors.AttachError(f"virsh failed for domain {self.domain}: {said!r}", help=_HELP)
        return output.decode(errors="replace")

    def _collect(self, process: subprocess.Popen[bytes]) -> tuple[bytes, bytes]:
        """Both pipes to their end, bounded in size and in time."""
        assert process.stdout is not None
        assert process.stderr is not None
        deadline = time.monotonic() + self._timeout
        limits: dict[IO[bytes], int] = {process.stdout: _ANSWER_NBYTES, process.stderr: _ERROR_NBYTES}
        collected: dict[IO[bytes], bytearray] = {pipe: bytearray() for pipe in limits}
        with selectors.DefaultSelector() as selector:
            for pipe in limits:
                selector.register(pipe, selectors.EVENT_READ)
            while selector.get_map():
                ready = selector.select(max(deadline - time.monotonic(), 0))
                if not ready:
                    raise errors.TargetTimeout("virsh is silent")
                for pipe in (pipe for pipe in limits if any(key.fileobj is pipe for key, _ in ready)):
                    piece = os.read(pipe.fileno(), _PIECE_NBYTES)
                    if not piece:
                        selector.unregister(pipe)
                    collected[pipe] += piece
                    if len(collected[pipe]) > limits[pipe]:
                        raise errors.ProtocolError(f"virsh answered with more than {limits[pipe]} bytes")
        return bytes(collected[process.stdout]), bytes(collected[process.stderr])
