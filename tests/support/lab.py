"""The lab's VMM as a process of its own, for tests: bounded waits, ended at the end.

with lab_guest() as guest:                       # plain, on the real /dev/kvm
    guest.host_bytes(0x100000, 16)
with SevHost() as host, lab_guest(policy=0, popen=host.popen) as guest:
    ...                                          # encrypted, on a pretend SEV host
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import pytest

import sevkvm
from sevkvm.abi.policybits import POLICY_ES
from sevkvm.lab.demo import DemoOptions, demo_image
from sevkvm.lab.image import Image
from sevkvm.shim import hardware

PROGRAM = [sys.executable, "-m", "sevkvm", "lab"]
# The sevkvm that is under test, wherever the subprocess starts.
SUBPROCESS_ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(sevkvm.__file__).parents[1])}
Popen = Callable[..., "subprocess.Popen[bytes]"]


@dataclass(frozen=True)
class LabSlot:
    """A memory slot as the VMM reported it."""

    gpa: int
    nbytes: int
    hva: int
    name: str
    readonly: bool


@dataclass
class LabGuest:
    """A guest that stands. ``image`` is what it was launched from, built again by the test."""

    process: subprocess.Popen[bytes]
    facts: dict[str, Any]
    slots: list[LabSlot]
    image: Image
    stderr_file: IO[bytes]

    @property
    def pid(self) -> int:
        """The VMM itself, also when a supervisor started it."""
        pid = self.facts["pid"]
        assert isinstance(pid, int)
        return pid

    @property
    def vm_fd(self) -> int:
        """The VM descriptor in that process."""
        fd = self.facts["vm_fd"]
        assert isinstance(fd, int)
        return fd

    def hva(self, gpa: int) -> int:
        """Where the VMM keeps ``gpa``."""
        for slot in self.slots:
            if slot.gpa <= gpa < slot.gpa + slot.nbytes:
                return slot.hva + gpa - slot.gpa
        raise KeyError(hex(gpa))

    def host_bytes(self, gpa: int, nbytes: int) -> bytes:
        """Guest memory as the host sees it, through /proc/PID/mem."""
        with open(f"/proc/{self.pid}/mem", "rb", buffering=0) as memory:
            return os.pread(memory.fileno(), nbytes, self.hva(gpa))

    def stderr(self) -> str:
        """What the VMM has said on stderr so far."""
        self.stderr_file.seek(0)
        return self.stderr_file.read().decode(errors="replace")

    def stop(self, timeout: float = 20.0) -> int:
        """Close its input and wait for its end; the exit status."""
        assert self.process.stdin
        self.process.stdin.close()
        return self.process.wait(timeout)


def lab_argv(
    *,
    policy: int | None = None,
    linux: bool = False,
    memory_mib: int = 8,
    cbit_pos: int | None = None,
    levels: int = 4,
    pcid: bool = False,
    vcpus: int = 1,
    backing: str = "anonymous",
    run: bool = False,
    extra: Sequence[str] = (),
) -> list[str]:
    """The command line; ``policy`` None is a plain VM; ``linux`` needs its ``memory_mib``."""
    argv = [*PROGRAM, f"--memory={memory_mib}M", f"--levels={levels}"]
    argv += [f"--vcpus={vcpus}", f"--backing={backing}"]
    argv += ["--plain"] if policy is None else [f"--policy={policy:#x}"]
    argv += [] if cbit_pos is None else [f"--cbit-pos={cbit_pos}"]
    argv += ["--pcid"] if pcid else []
    argv += ["--linux"] if linux else []
    argv += ["--run"] if run else []
    return argv + list(extra)


@contextmanager
def lab_guest(
    *, popen: Popen = subprocess.Popen, timeout: float = 30.0, image: Image | None = None, **options: Any
) -> Iterator[LabGuest]:
    """Start it (see :func:`lab_argv`), wait until it stands, end it.

    ``popen``: ``SevHost.popen``, for instance. ``image``: what a ``linux`` guest is launched from. On hardware a guest
    that it cannot launch is a skip.
    """
    if hardware.wanted() and (reason := _why_not_on_hardware(**options)):
        pytest.skip(reason)
    with TemporaryFile() as stderr:
        process = popen(
            lab_argv(**options),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=SUBPROCESS_ENVIRONMENT,
        )
        try:
            facts = _facts(process, stderr, time.monotonic() + timeout)
            slots = [
                LabSlot(int(s["gpa"], 16), s["size"], int(s["hva"], 16), s["name"], s["readonly"])
                for s in facts["slots"]
            ]
            image = image or demo_image(
                DemoOptions(
                    options.get("memory_mib", 8) << 20,
                    cbit_pos=facts["cbit_pos"],
                    levels=options.get("levels", 4),
                    pcid=options.get("pcid", False),
                    vcpus=options.get("vcpus", 1),
                )
            )
            yield LabGuest(process, facts, slots, image, stderr)
        finally:
            for pipe in (process.stdin, process.stdout):
                if pipe:
                    pipe.close()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)
                raise


def _why_not_on_hardware(*, policy: int | None = None, cbit_pos: int | None = None, **_: Any) -> str | None:
    if policy is not None and policy & POLICY_ES and not hardware.has_es():
        return "kvm_amd launches no SEV-ES guests here (parameter sev_es)"
    return None if policy is None else hardware.why_not(cbit_pos=cbit_pos)


def _facts(process: subprocess.Popen[bytes], stderr: IO[bytes], deadline: float) -> dict[str, Any]:
    assert process.stdout
    line = b""
    while not line.endswith(b"\n"):
        ready, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
        piece = os.read(process.stdout.fileno(), 65536) if ready else b""
        if not piece:
            stderr.seek(0)
            why = "ended" if ready else "said nothing in time"
            raise RuntimeError(f"the lab {why}: {stderr.read().decode(errors='replace')}")
        line += piece
    facts = json.loads(line)
    assert isinstance(facts, dict)
    return facts
