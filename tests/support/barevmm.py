"""The barest VMM as a process, for tests: tests/csrc/bare_vmm.c, RAM of a known pattern, a vCPU that never runs."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

RAM_NBYTES = 2 << 20
PATTERN = bytes((at * 7 + (at >> 12)) & 0xFF for at in range(RAM_NBYTES))


@dataclass
class BareVmm:
    """tests/csrc/bare_vmm.c, running. ``hva``: where its RAM is, as it said itself."""

    process: subprocess.Popen[bytes]
    pid: int
    vm_fd: int
    hva: int

    @property
    def slot(self) -> str:
        """For ``--slot``."""
        return f"0:{RAM_NBYTES:#x}:{self.hva:#x}"

    def answers(self) -> bool:
        """Its own thread does what it always did."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(b"x")
        return self.process.stdout.read(1) == b"."


@contextmanager
def running(program: Path, *, within: Sequence[str] = ()) -> Iterator[BareVmm]:
    """Start it, ``within`` another program that forks (unshare, say) or that becomes it; kill it at the end."""
    process = subprocess.Popen([*within, program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
    try:
        assert process.stdout
        fd, hva = process.stdout.read(64).split()
        yield BareVmm(process, _itself(process.pid), int(fd), int(hva, 16))
    finally:
        if process.poll() is None:
            os.kill(_itself(process.pid), signal.SIGKILL)
        process.communicate(timeout=10)


def _itself(pid: int) -> int:
    """The child of a program that forked, or that program."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(children[0]) if children else pid
