"""What another process may lock in memory."""

from __future__ import annotations

import resource
from typing import Final

from sevkvm.abi.x86 import PAGE_NBYTES

_CAP_IPC_LOCK: Final = 1 << 14


def may_lock(pid: int, tid: int, npages: int) -> bool:
    """May thread ``tid`` of process ``pid`` have so many pages locked? True for one that has ended."""
    limit = _memlock_nbytes(pid)
    return limit is None or npages <= limit // PAGE_NBYTES or bool(_capabilities(tid) & _CAP_IPC_LOCK)


def _memlock_nbytes(pid: int) -> int | None:
    """RLIMIT_MEMLOCK, the soft limit; None is no limit."""
    try:
        soft, _ = resource.prlimit(pid, resource.RLIMIT_MEMLOCK)
    except PermissionError:  # a process of another user than ours
        return _from_proc(pid)
    except OSError:
        return None
    return None if soft == resource.RLIM_INFINITY else soft


def _from_proc(pid: int) -> int | None:
    for line in _lines(f"/proc/{pid}/limits"):
        if line.startswith(b"Max locked memory"):
            soft = line.split()[3]
            return int(soft) if soft.isdigit() else None
    return None


def _capabilities(tid: int) -> int:
    """The effective set, as the kernel numbers capabilities."""
    for line in _lines(f"/proc/{tid}/status"):
        if line.startswith(b"CapEff:"):
            return int(line[7:], 16)
    return 0


def _lines(path: str) -> list[bytes]:
    try:
        with open(path, "rb") as file:
            return file.readlines()
    except OSError:
        return []
