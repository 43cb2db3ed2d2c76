"""A process to attach to: the C program tests/csrc/victim.c, and what of it must not change."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

# What tests/csrc/deputy_suicide.c is linked with; it compiles sk_trace.c into itself.
DEPUTY_SOURCES = (
    "sk_area.c",
    "sk_borrow.c",
    "sk_deputy.c",
    "sk_gadget.c",
    "sk_hold.c",
    "sk_remote.c",
    "sk_seccomp.c",
    "sk_status.c",
    "sk_tasks.c",
    "sk_xfer.c",
)


class Victim:
    """Runs in ``mode`` (poll, sleep or spin) until killed.

    ``sandbox``: a system call for which a seccomp filter kills it, and the second argument, if only with that one; a
    negative number filters the main thread only.
    """

    def __init__(self, program: Path, mode: str, *sandbox: int) -> None:
        self.process = subprocess.Popen(
            [program, mode, *map(str, sandbox)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self.pid = self.process.pid
        self.ask()

    def ask(self) -> tuple[int, int]:
        """(rounds done, surprises seen): proves that two of its threads run."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write("\n")
        rounds, surprises = self.process.stdout.readline().split()
        return int(rounds), int(surprises)

    def assert_well(self) -> None:
        """Both threads go on and nothing was disturbed."""
        before, _ = self.ask()
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            rounds, surprises = self.ask()
            assert surprises == 0
            if rounds > before:
                return
            time.sleep(0.002)
        pytest.fail("the main thread stands still")

    def threads(self) -> int:
        """Tasks in the process."""
        return len(list(Path(f"/proc/{self.pid}/task").iterdir()))

    def shape(self) -> tuple[int, int, list[str]]:
        """Threads, descriptors and mappings, addresses left out."""
        proc = Path(f"/proc/{self.pid}")
        maps = [line.split(maxsplit=1)[1] for line in (proc / "maps").read_text().splitlines()]
        return self.threads(), len(list((proc / "fd").iterdir())), maps

    def wait_for_threads(self, count: int) -> None:
        """A thread that was told to end needs a moment."""
        deadline = time.monotonic() + 5
        while self.threads() != count:
            assert time.monotonic() < deadline, f"{self.threads()} threads instead of {count}"
            time.sleep(0.001)

    def close(self) -> None:
        """Kill it."""
        self.process.kill()
        self.process.wait(10)
