"""Boot a Linux under QEMU's emulation (no KVM) until it says it is ready; keep its RAM and registers.

Every wait is bounded by one deadline; QEMU is killed on the way out, whatever happened.
"""

from __future__ import annotations

import json
import os
import re
import selectors
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from sevkvm.errors import ProtocolError, TargetTimeout
from sevkvm.lab.debian import LabUnavailable
from sevkvm.lab.image import VcpuInit
from sevkvm.lab.registers import parse_registers

PROGRAM: Final = "qemu-system-x86_64"
_CONSOLE_NBYTES_MAX: Final = 1 << 20
_ANSWER_NBYTES_MAX: Final = 1 << 22
_MONITOR_SECONDS: Final = 20.0  # for one answer
_LOOKS: Final = 250  # whether it is at rest
_LOOK_SECONDS: Final = 0.02

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Machine:
    """The emulated machine; ``ram_nbytes`` is whole MiB and stays below 2 GiB, so RAM is in one piece.

    AMD processors need no page-table isolation, so each process has one top table.
    """

    ram_nbytes: int = 256 << 20
    cpus: int = 1
    la57: bool = False

    @property
    def levels(self) -> int:
        """Of its page tables."""
        return 5 if self.la57 else 4

    def argv(self, kernel: Path, initrd: Path, ram: Path, monitor: Path) -> list[str]:
        """QEMU's command line: RAM in a shared file, the serial console on stdout."""
        path = str(ram).replace(",", ",,")  # as QEMU wants commas inside a value
        backend = f"memory-backend-file,id=ram0,size={self.ram_nbytes},mem-path={path},share=on"
        return [
            *(PROGRAM, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
            *("-accel", "tcg", "-cpu", "EPYC,+la57" if self.la57 else "EPYC"),
            *("-object", backend, "-machine", "q35,memory-backend=ram0"),
            *("-m", f"{self.ram_nbytes >> 20}M"),
            *("-smp", str(self.cpus), "-serial", "stdio"),
            *("-qmp", f"unix:{monitor},server=on,wait=off"),
            *("-kernel", str(kernel), "-initrd", str(initrd)),
            *("-append", "console=ttyS0 quiet panic=-1"),
        ]


class Emulator:
    """QEMU at work; use it in a ``with``. Needs a directory of its own for its sockets and log."""

    def __init__(
        self, machine: Machine, kernel: Path, initrd: Path, ram: Path, directory: Path, seconds: float
    ) -> None:
        if shutil.which(PROGRAM) is None:
            raise LabUnavailable(f"{PROGRAM} not found", help="Debian: apt install qemu-system-x86")
        self._deadline = time.monotonic() + seconds
        self._monitor = directory / "monitor"
        self._log = directory / "stderr"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                machine.argv(kernel, initrd, ram, self._monitor),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
            )

    def __enter__(self) -> Emulator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait(timeout=30)
        if self._process.stdout:
            self._process.stdout.close()

    def run_until(self, line: str, progress: Progress) -> str:
        """The console's text up to and with ``line``; TargetTimeout or ProtocolError if it never comes."""
        assert self._process.stdout is not None
        fd = self._process.stdout.fileno()
        text = bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(fd, selectors.EVENT_READ)
            while len(text) < _CONSOLE_NBYTES_MAX:
                left = self._deadline - time.monotonic()
                if left <= 0 or not selector.select(left):
                    raise TargetTimeout(f"the guest did not say {line!r} in time: {_tail(text)}")
                chunk = os.read(fd, 65536)
                if not chunk:
                    said = self._log.read_text(errors="replace")[-500:]
                    raise ProtocolError(f"the guest ended before it said {line!r}: {_tail(text)} {said}")
                before = text.count(b"\n")
                text += chunk.replace(b"\r", b"")
                lines = text.decode(errors="replace").split("\n")
                for complete in lines[before:-1]:
                    progress(complete)
                if line in lines[:-1]:
                    return "\n".join(lines[:-1]) + "\n"
        raise ProtocolError(f"the guest filled its console and never said {line!r}")

    def stop(self) -> tuple[VcpuInit, ...]:
        """Stop the guest for good and read its registers; from then on the RAM file stands still.

        It is stopped at rest, every vCPU halted in the kernel's idle loop, if it comes to rest within some seconds:
        else no two boots would be alike.
        """
        with socket.socket(socket.AF_UNIX) as channel:
            channel.settimeout(_MONITOR_SECONDS)
            channel.connect(str(self._monitor))
            with channel.makefile("rwb") as stream:
                _receive(stream, "QMP")
                _execute(stream, "qmp_capabilities")
                text = _stopped(stream)
                for _ in range(_LOOKS):
                    if _at_rest(text):
                        break
                    _execute(stream, "cont")
                    time.sleep(_LOOK_SECONDS)
                    text = _stopped(stream)
        return tuple(parse_registers(text))


def _stopped(stream: Any) -> str:
    _execute(stream, "stop")
    text = _execute(stream, "human-monitor-command", **{"command-line": "info registers -a"})
    return str(text).replace("\r\n", "\n")


def _at_rest(registers: str) -> bool:
    return set(re.findall(r"\bHLT=([01])", registers)) == {"1"}


def _execute(stream: Any, command: str, **arguments: str) -> object:
    stream.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
    stream.flush()
    return _receive(stream, "return")


def _receive(stream: Any, key: str) -> object:
    """The next message's ``key``; events are passed over, anything else is a ProtocolError."""
    for _ in range(1000):
        line = stream.readline(_ANSWER_NBYTES_MAX)
        try:
            message = json.loads(line)
        except ValueError as error:
            raise ProtocolError(f"QEMU's monitor sent {line[:100]!r}") from error
        if key in message:
            return message[key]
        if "event" not in message:
            raise ProtocolError(f"QEMU's monitor answered {message}")
    raise ProtocolError("QEMU's monitor sent 1000 events and no answer")


def _tail(text: bytearray) -> str:
    return repr(bytes(text[-300:]).decode(errors="replace"))
