"""/proc text as dataclasses. Every function takes the proc root, so that tests can make one up.

One process: VmNotFound when it does not exist, AttachError when we may not look. Lists skip what vanishes meanwhile.
Source of the formats: Linux Documentation/filesystems/proc.rst and fs/proc (v6.18).
"""

# ruff: noqa: PTH115, PTH208 -- a listing reads thousands of names and links; as strings, not as Path objects

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from sevkvm import errors

PROC: Final = Path("/proc")
PF_USER_WORKER: Final = 0x4000  # include/linux/sched.h: driven by the kernel; never stops for ptrace
KVM_VM_LINK: Final = "anon_inode:kvm-vm"
_KVM_VCPU_LINK: Final = re.compile(r"anon_inode:kvm-vcpu:(\d+)")
# /dev/sev; a container may see it elsewhere, and on a pretend host it is a file in memory
_SEV_DEVICE_LINK: Final = re.compile(r"/(.*/|memfd:)sev( \(deleted\))?")
_RIGHTS_HELP: Final = (
    "run sevkvm as root, as the VMM's own user, or with CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH"
)

_T = TypeVar("_T")


class Mapping(NamedTuple):
    """One line of ``maps``: ``[start, end)`` of the process's memory (hva); ``path`` is empty for anonymous."""

    start: int
    end: int
    perms: str
    offset: int
    dev: str
    inode: int
    path: str

    @property
    def readable(self) -> bool:
        """May the process itself read it?"""
        return self.perms.startswith("r")


class Stat(NamedTuple):
    """What is used of ``stat``; ``starttime`` in clock ticks since boot."""

    pid: int
    comm: str
    state: str
    ppid: int
    flags: int
    starttime: int


class Status(NamedTuple):
    """What is used of ``status``; a field that this kernel does not print reads 0, -1 (uids) or empty."""

    tgid: int
    tracer_pid: int
    seccomp: int
    uid: int
    euid: int
    no_new_privs: bool
    thread_features: frozenset[str]


class Task(NamedTuple):
    """One entry of ``task``. A ``user_worker`` is driven by the kernel and never stops for ptrace."""

    tid: int
    comm: str
    user_worker: bool


def pids(proc: Path = PROC) -> list[int]:
    """Every process, ascending."""
    return sorted(int(name) for name in os.listdir(proc) if name.isdecimal())


def maps(pid: int, proc: Path = PROC) -> list[Mapping]:
    """The process's mappings, ascending."""
    return [_mapping(line) for line in _text(pid, "maps", proc).split("\n") if line]


def stat(pid: int, proc: Path = PROC) -> Stat:
    """``stat`` of a process."""
    return _parse_stat(_text(pid, "stat", proc))


def status(pid: int, proc: Path = PROC) -> Status:
    """``status`` of a process or of one thread."""
    fields = dict(line.split(":", 1) for line in _text(pid, "status", proc).splitlines() if ":" in line)
    uids = [int(word) for word in fields.get("Uid", "").split()] or [-1, -1]
    return Status(
        tgid=int(fields.get("Tgid", pid)),
        tracer_pid=int(fields.get("TracerPid", 0)),
        seccomp=int(fields.get("Seccomp", 0)),
        uid=uids[0],
        euid=uids[1],
        no_new_privs=int(fields.get("NoNewPrivs", 0)) != 0,
        thread_features=frozenset(fields.get("x86_Thread_features", "").split()),
    )


def cmdline(pid: int, proc: Path = PROC) -> list[str]:
    """The arguments the process was started with (it may have overwritten them); empty for a zombie."""
    text = _text(pid, "cmdline", proc)
    return text.removesuffix("\0").split("\0") if text else []


def environment(pid: int, name: str, proc: Path = PROC) -> str | None:
    """A variable of the environment that the process was started with; None if it has no such."""
    for word in _text(pid, "environ", proc).split("\0"):
        key, equals, value = word.partition("=")
        if equals and key == name:
            return value
    return None


def fd_links(pid: int, proc: Path = PROC) -> dict[int, str]:
    """What every descriptor of the process names, in ascending order of descriptors."""

    def read() -> dict[int, str]:
        directory = f"{proc}/{pid}/fd"
        links: dict[int, str] = {}
        for fd in sorted(int(name) for name in os.listdir(directory)):
            try:
                links[fd] = os.readlink(f"{directory}/{fd}")
            except FileNotFoundError:
                continue  # closed since it was listed
        return links

    return _asked(pid, "fd", read)


def vcpu_index(link: str) -> int | None:
    """N of ``anon_inode:kvm-vcpu:N``, or None for any other descriptor (a vCPU's statistics, say)."""
    match = _KVM_VCPU_LINK.fullmatch(link)
    return int(match[1]) if match else None


def is_sev_device(link: str) -> bool:
    """Does a descriptor with this link look like the SEV device?"""
    return _SEV_DEVICE_LINK.fullmatch(link) is not None


def tasks(pid: int, proc: Path = PROC) -> list[Task]:
    """The tasks of a process, ascending; threads that end meanwhile are left out."""
    found = []
    for tid in sorted(int(name) for name in _asked(pid, "task", lambda: os.listdir(f"{proc}/{pid}/task"))):
        try:
            each = _parse_stat(_text(pid, f"task/{tid}/stat", proc))
        except errors.VmNotFound:
            continue
        found.append(Task(tid, each.comm, bool(each.flags & PF_USER_WORKER)))
    return found


def cwd(pid: int, proc: Path = PROC) -> str:
    """The process's working directory, as a path inside its own root."""
    return _asked(pid, "cwd", lambda: os.readlink(f"{proc}/{pid}/cwd"))


def root(pid: int, proc: Path = PROC) -> str:
    """The process's root directory; ``/`` also when it lives in a mount namespace of its own."""
    return _asked(pid, "root", lambda: os.readlink(f"{proc}/{pid}/root"))


def _mapping(line: str) -> Mapping:
    span, perms, offset, dev, inode, *path = line.split(None, 5)
    start, _, end = span.partition("-")
    return Mapping(
        int(start, 16), int(end, 16), perms, int(offset, 16), dev, int(inode), path[0] if path else ""
    )


def _parse_stat(text: str) -> Stat:
    # The name may hold spaces and parentheses; only the last ")" ends it.
    head, _, tail = text.rpartition(")")
    pid, _, comm = head.partition(" (")
    fields = tail.split()  # fields[0] is field 3 of proc.rst
    return Stat(int(pid), comm, fields[0], int(fields[1]), int(fields[6]), int(fields[19]))


def _text(pid: int, name: str, proc: Path) -> str:
    def read() -> str:
        # names of programs and files are bytes of anybody's choosing
        with open(f"{proc}/{pid}/{name}", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
            return file.read()

    return _asked(pid, name, read)


def _asked(pid: int, name: str, ask: Callable[[], _T]) -> _T:
    with _translated(pid, name):
        return ask()


@contextmanager
def _translated(pid: int, name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        # ESRCH: the process ended between open and read
        if error.errno in (errno.ENOENT, errno.ESRCH):
            raise errors.VmNotFound(
                f"no process {pid}",
                help="`sevkvm list` shows the VMs of this host; in a container only its own",
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM):
            raise errors.AttachError(
                f"may not look at process {pid} (/proc/{pid}/{name})", pid=pid, help=_RIGHTS_HELP
            ) from error
        raise
