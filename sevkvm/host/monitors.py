"""Where a running QEMU listens for QMP clients, from its command line."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

from sevkvm import errors
from sevkvm.host import procfs, qemuargs
from sevkvm.host.procfs import PROC

_CONNECTED: Final = "03"  # SS_CONNECTED of include/uapi/linux/net.h, as /proc/net/unix prints it
_POLL_SECONDS: Final = 0.05


def monitor_socket(pid: int, proc: Path = PROC, patience: float = 1.0) -> str | None:
    """A QMP socket of the process that we can reach and that is free, or None if its command line names none.

    QEMU talks to one client a socket and lets the others wait. Raises AttachError when all its sockets are still taken
    after ``patience`` seconds: a client that has just been killed needs a moment to be noticed.
    """
    deadline = time.monotonic() + patience
    while True:
        taken: list[str] = []
        for path in qemuargs.parse(procfs.cmdline(pid, proc)).monitor_sockets:
            ours = _reachable(pid, path, proc)
            if ours is not None and not _is_taken(pid, path, proc):
                return ours
            if ours is not None:
                taken.append(ours)
        if not taken:
            return None
        if time.monotonic() >= deadline:
            raise errors.AttachError(
                f"another client uses the monitor of process {pid} ({', '.join(taken)})",
                pid=pid,
                help="close that client, or start QEMU with one more -qmp unix:PATH,server=on,wait=off",
            )
        time.sleep(_POLL_SECONDS)


def _reachable(pid: int, path: str, proc: Path) -> str | None:
    """The path as we can open it: the process may have another root and another working directory."""
    inside = os.path.join(procfs.cwd(pid, proc), path)  # noqa: PTH118 -- an absolute path wins, as in the process
    seen = f"{proc}/{pid}/root{inside}"
    if _is_socket(seen):
        return inside if _same_file(inside, seen) else seen
    return inside if _is_socket(inside) else None  # bound before QEMU changed its root


def _is_socket(path: str) -> bool:
    try:
        return Path(path).is_socket()
    except (OSError, ValueError):
        return False  # a hostile path


def _same_file(path: str, other: str) -> bool:
    try:
        return Path(path).samefile(other)
    except OSError:
        return False


def _is_taken(pid: int, path: str, proc: Path) -> bool:
    """Is a client connected? The accepted end of a connection carries the path that QEMU bound."""
    try:
        with open(f"{proc}/{pid}/net/unix", encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                fields = line.rstrip("\n").split(None, 7)  # Num RefCount Protocol Flags Type St Inode Path
                if len(fields) == 8 and fields[7] == path and fields[5] == _CONNECTED:
                    return True
    except OSError:
        return False  # not told: try it
    return False
