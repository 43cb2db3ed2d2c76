"""Killing `sevkvm dump` at random moments while its target looks on."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.support.build import ROOT
from tests.support.qemu import QemuVmm

Shape = tuple[int, int, int]


def dump_argv(vmm: QemuVmm, start: int, end: int, output: Path, *options: str) -> list[str]:
    """The command line that dumps ``[start, end)`` of guest-physical memory."""
    return [
        *(sys.executable, "-m", "sevkvm", "dump", "--pid", str(vmm.pid), "--vm-fd", str(vmm.vm_fd)),
        *("--qmp", vmm.qmp_path, "--gpa", f"{start:#x}:{end:#x}", "-o", str(output), *options),
    ]


def dump(argv: list[str], output: Path) -> bytes:
    """Run it undisturbed; what it wrote."""
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    return output.read_bytes()


def shape(pid: int) -> Shape:
    """Threads, descriptors and mappings of a process: of files, and shared, as all of ours are.

    Private memory without a name is the process's own heap and stacks, which come and go.
    """
    proc = Path(f"/proc/{pid}")
    maps = [line.split(None, 5) for line in (proc / "maps").read_text().splitlines()]
    return (
        len(list((proc / "task").iterdir())),
        len(list((proc / "fd").iterdir())),
        sum(len(fields) > 5 or fields[1].endswith("s") for fields in maps),
    )


def settle(pid: int, wanted: Shape) -> Shape:
    """The shape, once what is ending has ended."""
    deadline = time.monotonic() + 10
    while shape(pid) != wanted and time.monotonic() < deadline:
        time.sleep(0.01)
    return shape(pid)


def marks(pid: int) -> list[str]:
    """Areas of ours that are still mapped, by the mark they open with."""
    found = []
    with open(f"/proc/{pid}/mem", "rb") as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            if "rw-s" in line and line.endswith("/dev/zero (deleted)"):
                start, end = (int(word, 16) for word in line.split()[0].split("-"))
                memory.seek(start)
                if memory.read(6) == b"sevkvm":
                    found.append(f"{end - start:#x}")
    return found


def settle_marks(pid: int) -> set[str]:
    """:func:`marks` when a deputy that outlived us has had time to finish its call and to clean up behind itself."""
    deadline = time.monotonic() + 10
    while set(marks(pid)) - {"0x1000"} and time.monotonic() < deadline:
        time.sleep(0.01)
    return set(marks(pid))


def assert_left(pid: int, before: Shape) -> None:
    """What we added to the process is gone: threads, descriptors, areas. Its own heap may have changed meanwhile."""
    deadline = time.monotonic() + 10
    while (shape(pid)[:2] != before[:2] or marks(pid)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (*shape(pid)[:2], marks(pid)) == (*before[:2], [])


def kill_dumps(
    pid: int,
    argv: list[str],
    turns: int,
    seconds: float,
    alive: Callable[[], bool],
    check: Callable[[], None],
) -> dict[str, int]:
    """Start ``argv`` and SIGKILL it, ``turns`` times, within ``seconds`` of its start; what became of them.

    Every other time the kill waits until the dump is inside the target. ``check`` looks at what is left each time.
    """
    chance = random.Random(20261122)
    threads = shape(pid)[0]
    outcomes = {"killed": 0, "finished": 0, "attached": 0}
    for turn in range(turns):
        process = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if turn % 2:
            deadline = time.monotonic() + 10
            while process.poll() is None and shape(pid)[0] == threads and time.monotonic() < deadline:
                pass
            outcomes["attached"] += shape(pid)[0] != threads
            time.sleep(chance.uniform(0, seconds / 3))
        else:
            time.sleep(chance.uniform(0, seconds))
        process.kill()
        outcomes["killed" if process.wait(10) == -signal.SIGKILL else "finished"] += 1
        assert alive(), f"the target died at turn {turn}"
        check()
    return outcomes
