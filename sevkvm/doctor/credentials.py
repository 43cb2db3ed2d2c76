"""Who a process is, as far as it decides what it may do to others.

Source: Linux Documentation/filesystems/proc.rst (status, limits), include/uapi/linux/capability.h (v6.18).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from sevkvm.doctor.machine import Machine

CAP_IPC_LOCK: Final = 14
CAP_SYS_PTRACE: Final = 19
CAP_SYS_ADMIN: Final = 21
# include/linux/proc_ns.h: the inodes of the namespaces that the kernel starts with
INITIAL_PID_NAMESPACE: Final = "pid:[4026531836]"
INITIAL_USER_NAMESPACE: Final = "user:[4026531837]"
_MEMLOCK: Final = re.compile(r"^Max locked memory\s+(\S+)", re.MULTILINE)


class Credentials(NamedTuple):
    """``euid`` is -1 where it cannot be told; ``seccomp``: 0 none, 1 strict, 2 filter."""

    uid: int
    euid: int
    cap_effective: int
    cap_permitted: int
    seccomp: int
    tracer_pid: int

    def has(self, capability: int) -> bool:
        """Is it effective?"""
        return bool(self.cap_effective >> capability & 1)


def credentials(machine: Machine, pid: int | str, tid: int | None = None) -> Credentials:
    """Of ``pid`` or ``self``, or of one of its threads; all zero, without a user, where /proc does not tell."""
    path = machine.proc / str(pid)
    path = path / "status" if tid is None else path / "task" / str(tid) / "status"
    lines = (machine.text(path) or "").splitlines()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    uids = [int(word) for word in fields.get("Uid", "").split()] or [-1, -1]
    return Credentials(
        uid=uids[0],
        euid=uids[1],
        cap_effective=int(fields.get("CapEff", "0"), 16),
        cap_permitted=int(fields.get("CapPrm", "0"), 16),
        seccomp=int(fields.get("Seccomp", 0)),
        tracer_pid=int(fields.get("TracerPid", 0)),
    )


def memlock_limit(machine: Machine, pid: int | str) -> int | None:
    """RLIMIT_MEMLOCK, the soft limit, in bytes; None if unlimited, or not told."""
    match = _MEMLOCK.search(machine.text(machine.proc / str(pid) / "limits") or "")
    return int(match[1]) if match and match[1].isdecimal() else None
