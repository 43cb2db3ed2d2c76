"""Which processes hold which KVM VMs, and which of them owns one.

A VM's descriptor may be open several times and in several processes (inheritance); kcmp(2) tells equal files apart
from equal names. The kernel obeys only the process whose memory the VM lives in, but no interface says which that
is: it is taken to be the one that maps or holds the vCPUs, else the one that the others descend from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from sevkvm import errors
from sevkvm.host import procfs

SameFile = Callable[[int, int, int, int], bool]  # native.same_file(pid1, fd1, pid2, fd2)
_MAX_ANCESTORS: Final = 4096


class Holder(NamedTuple):
    """A process that has VMs open.

    ``vms``: its descriptors of VMs, those of one VM together. ``vcpu_fds``: index -> descriptor; ``vcpus_clash``: two
    different vCPUs have the same index.
    """

    pid: int
    vms: tuple[tuple[int, ...], ...]
    vcpu_fds: dict[int, int]
    vcpus_clash: bool
    has_sev_device: bool


def holders(proc: Path, same_file: SameFile) -> Iterator[Holder]:
    """Every process that has a VM open; those that vanish or that we may not look at are left out."""
    for pid in procfs.pids(proc):
        try:
            each = holder(pid, proc, same_file)
        except (errors.SevKvmError, OSError):
            continue
        if each.vms:
            yield each


def holder(pid: int, proc: Path, same_file: SameFile) -> Holder:
    """One process, which may have none open. Raises VmNotFound or AttachError."""
    links = procfs.fd_links(pid, proc)
    vms: list[list[int]] = []
    for fd in (fd for fd, link in links.items() if link == procfs.KVM_VM_LINK):
        for fds in vms:
            if same(same_file, pid, fds[0], pid, fd):
                fds.append(fd)
                break
        else:
            vms.append([fd])
    vcpu_fds: dict[int, int] = {}
    clash = False
    for fd, link in links.items():
        index = procfs.vcpu_index(link)
        if index is not None:
            first = vcpu_fds.setdefault(index, fd)
            clash = clash or (first != fd and not same(same_file, pid, first, pid, fd))
    return Holder(
        pid,
        tuple(tuple(fds) for fds in vms),
        dict(sorted(vcpu_fds.items())),
        clash,
        any(procfs.is_sev_device(link) for link in links.values()),
    )


def same(same_file: SameFile, pid1: int, fd1: int, pid2: int, fd2: int) -> bool:
    """``same_file``, or False where it cannot be told: a process is gone, or kcmp(2) is not for us."""
    try:
        return same_file(pid1, fd1, pid2, fd2)
    except errors.SevKvmError:
        return False


def owners(candidates: Sequence[Holder], proc: Path) -> list[Holder]:
    """Those among the holders of one VM that may own it, oldest process first; one if it is clear."""
    ranks = {each.pid: _rank(each, proc) for each in candidates}
    best = [each for each in candidates if ranks[each.pid] == max(ranks.values())]
    pids = {each.pid for each in best}
    # a child inherits; its parent cannot
    heads = [each for each in best if not pids.intersection(_ancestors(each.pid, proc))]
    return sorted(heads or best, key=lambda each: (_starttime(each.pid, proc), each.pid))


def _rank(candidate: Holder, proc: Path) -> int:
    """2: it maps vCPUs, as a VMM that runs them must; 1: it has some open; 0: neither (yet)."""
    try:
        if any(procfs.vcpu_index(each.path) is not None for each in procfs.maps(candidate.pid, proc)):
            return 2
    except (errors.SevKvmError, OSError):
        return 0
    return 1 if candidate.vcpu_fds else 0


def _ancestors(pid: int, proc: Path) -> Iterator[int]:
    for _ in range(_MAX_ANCESTORS):
        try:
            pid = procfs.stat(pid, proc).ppid
        except (errors.SevKvmError, OSError):
            return
        if pid <= 0:
            return
        yield pid


def _starttime(pid: int, proc: Path) -> int:
    try:
        return procfs.stat(pid, proc).starttime
    except (errors.SevKvmError, OSError):
        return 1 << 64  # gone: last
