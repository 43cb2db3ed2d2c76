"""Debian's gdb in batch mode, and `sevkvm gdbserver` as a process of its own, every wait bounded.

with gdbserver("--pid", "42", directory=tmp_path) as server:
    text = gdb(server.target, "info registers rip", "detach")
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.build import ROOT


def require_gdb() -> None:
    """Skip the test, saying why, where there is no gdb."""
    if shutil.which("gdb") is None:
        pytest.skip("gdb not installed (Debian: apt install gdb)")


@dataclass
class GdbServer:
    """A running server. ``target`` is what gdb's ``target remote`` takes."""

    process: subprocess.Popen[bytes]
    address: str
    errors: Path

    @property
    def target(self) -> str:
        """The address without its kind."""
        return self.address.partition(":")[2]

    def stderr(self) -> str:
        """What it has said so far."""
        return self.errors.read_text(errors="replace")


@contextmanager
def gdbserver(
    *options: str, directory: Path, listen: str | None = None, timeout: float = 60.0
) -> Iterator[GdbServer]:
    """Start it, wait until gdb may connect, end it by SIGTERM."""
    listen = listen or f"unix:{directory / 'gdb.sock'}"
    errors = directory / "gdbserver.stderr"
    argv = [sys.executable, "-m", "sevkvm", "gdbserver", *options, "--listen", listen]
    with errors.open("wb") as stderr:
        process = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=stderr)
    try:
        yield GdbServer(process, _first_line(process, errors, timeout), errors)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)
            raise
        finally:
            assert process.stdout
            process.stdout.close()


def gdb_argv(target: str, *commands: str, file: Path | None = None) -> list[str]:
    """gdb that connects, does this and ends; it detaches from what it did not start. ``file``: of symbols."""
    argv = ["gdb", "-nx", "-batch", "-iex", "set pagination off", "-iex", "set width 0"]
    argv += [] if file is None else [str(file)]
    for command in (f"target remote {target}", *commands):
        argv += ["-ex", command]
    return argv


def gdb(target: str, *commands: str, timeout: float = 60.0, file: Path | None = None) -> str:
    """Run it; what it said, its errors and `monitor` output too."""
    argv = gdb_argv(target, *commands, file=file)
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=timeout
    )
    return done.stdout.decode(errors="replace")


def _first_line(process: subprocess.Popen[bytes], errors: Path, timeout: float) -> str:
    assert process.stdout
    deadline = time.monotonic() + timeout
    line = b""
    while not line.endswith(b"\n"):
        ready, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
        piece = os.read(process.stdout.fileno(), 4096) if ready else b""
        if not piece:
            raise AssertionError(f"the server said nothing: {errors.read_text(errors='replace')}")
        line += piece
    return line.decode().strip()
