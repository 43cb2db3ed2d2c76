"""What another process may lock in memory."""

from __future__ import annotations

import os
import resource
from typing import Final

from sevkvm.abi.x86 import PAGE_NBYTES

_CAP_IPC_LOCK: Final = 1 << 14
_MOST_NBYTES: Final = 16 << 10  # of such a file; the kernel hands out all of it at once


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
    soft = _words_after(b"\nMax locked memory", f"/proc/{pid}/limits")[:1]
    return int(soft[0]) if soft and soft[0].isdigit() else None


def _capabilities(tid: int) -> int:
    """The effective set, as the kernel numbers capabilities."""
    words = _words_after(b"\nCapEff:", f"/proc/{tid}/status")[:1]
    return int(words[0], 16) if words else 0


def _words_after(name: bytes, path: str) -> list[bytes]:
    """The words behind ``name`` on its line; every debug command asks, so that no other line is looked at."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return []
    try:
        text = os.read(fd, _MOST_NBYTES)
    except OSError:
        return []
    finally:
        os.close(fd)
    _, found, rest = text.partition(name)
    return rest.partition(b"\n")[0].split() if found else []
