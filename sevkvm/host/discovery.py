"""The KVM guests of this host, and which of them the user means."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from sevkvm import errors, native
from sevkvm.host import holders as holding
from sevkvm.host import procfs, qemuargs
from sevkvm.host.holders import Holder, SameFile
from sevkvm.host.monitors import monitor_socket
from sevkvm.host.procfs import PROC

__all__ = ["VmInfo", "find_vms", "monitor_socket", "resolve"]

_LIST_HELP: Final = "`sevkvm list` shows the VMs of this host; only root sees those of other users"
_SHOWN: Final = 8


class VmInfo(NamedTuple):
    """One VM as its owner has it.

    ``vm_fds``: all descriptors of this VM that the owner has; ``vm_fd`` is one of them. ``vcpu_fds``: index ->
    descriptor. ``vcpus_ambiguous``: the process has several VMs, and names do not tell whose vCPUs are whose.
    ``holders``: other processes that have the VM open. ``name``: QEMU's ``-name``, else the process's; printable.
    """

    pid: int
    vm_fd: int
    vm_fds: tuple[int, ...]
    vcpu_fds: dict[int, int]
    vcpus_ambiguous: bool
    has_sev_device: bool
    name: str
    comm: str
    uid: int
    holders: tuple[int, ...] = ()


@dataclass
class _Vm:
    """A VM and who has it open: each process with its descriptors."""

    held: list[tuple[Holder, tuple[int, ...]]]

    def owners(self, proc: Path) -> list[Holder]:
        return holding.owners([holder for holder, _ in self.held], proc)

    def as_owned_by(self, owner: Holder, proc: Path) -> VmInfo:
        (fds,) = (fds for holder, fds in self.held if holder.pid == owner.pid)
        return _describe(owner, fds, tuple(each.pid for each, _ in self.held if each.pid != owner.pid), proc)


def find_vms(proc: Path = PROC, same_file: SameFile = native.same_file) -> list[VmInfo]:
    """Every KVM VM on this host that we have the rights to see, one entry each, by pid and descriptor."""
    found: list[VmInfo] = []
    for vm in _all(proc, same_file):
        try:
            found.append(vm.as_owned_by(vm.owners(proc)[0], proc))
        except (errors.SevKvmError, OSError):
            continue  # its process has just ended
    return sorted(found, key=lambda each: (each.pid, each.vm_fd))


def resolve(
    pid: int | None,
    vm_fd: int | None,
    proc: Path = PROC,
    same_file: SameFile = native.same_file,
    domain: str | None = None,
) -> VmInfo:
    """The VM that ``--pid`` and ``--vm-fd`` mean.

    Both: that descriptor of that process. ``pid`` alone: its only VM. ``vm_fd`` alone: the owner of our own inherited
    descriptor, or if that is no VM, the only VM on the host that is some process's descriptor ``vm_fd``, or the only
    VM. Neither: the only VM whose QEMU is named ``domain``, as libvirt names it, or the only VM on the host. Raises
    VmNotFound, naming what there is, or AttachError for want of rights.
    """
    if pid is not None:
        return _of_process(pid, vm_fd, proc, same_file)
    if vm_fd is None:
        vms = find_vms(proc, same_file)
        named = [vm for vm in vms if vm.name == domain]
        return _only(
            named if len(named) == 1 else vms, "the host has", "name one with --pid, and --vm-fd if need be"
        )
    own = os.getpid()
    if procfs.fd_links(own, proc).get(vm_fd) == procfs.KVM_VM_LINK:
        return _of_inherited(own, vm_fd, proc, same_file)
    vms = find_vms(proc, same_file)
    by_number = [vm._replace(vm_fd=vm_fd) for vm in vms if vm_fd in vm.vm_fds]
    what = f"our own descriptor {vm_fd} is not a KVM VM, and the host has"
    return _only(by_number or vms, what, "name the process with --pid")


def _of_process(pid: int, vm_fd: int | None, proc: Path, same_file: SameFile) -> VmInfo:
    pid = procfs.status(pid, proc).tgid  # the id of one of its threads is as good
    holder = holding.holder(pid, proc, same_file)
    if vm_fd is None and len(holder.vms) == 1:
        return _describe(holder, holder.vms[0], (), proc)
    for fds in holder.vms:
        if vm_fd in fds:
            return _describe(holder, fds, (), proc)._replace(vm_fd=vm_fd)
    if not holder.vms:
        raise errors.VmNotFound(f"process {pid} has no KVM VM open", help=_LIST_HELP)
    known = "its VM descriptors: " + ", ".join(str(fd) for fds in holder.vms for fd in fds)
    if vm_fd is None:
        raise errors.VmNotFound(
            f"process {pid} has {len(holder.vms)} VMs", help=f"choose one with --vm-fd; {known}"
        )
    raise errors.VmNotFound(f"descriptor {vm_fd} of process {pid} is not a KVM VM", help=known)


def _of_inherited(own: int, vm_fd: int, proc: Path, same_file: SameFile) -> VmInfo:
    for vm in _all(proc, same_file):
        if not any(holder.pid == own and vm_fd in fds for holder, fds in vm.held):
            continue
        owners = vm.owners(proc)
        if len(owners) == 1:
            return vm.as_owned_by(owners[0], proc)
        candidates = ", ".join(str(owner.pid) for owner in owners)
        raise errors.VmNotFound(
            f"our descriptor {vm_fd} is open in several processes that may own the VM: {candidates}",
            help="name the owner with --pid, and the descriptor it has there with --vm-fd",
        )
    raise errors.VmNotFound(f"our descriptor {vm_fd} was closed meanwhile", help=_LIST_HELP)


def _only(vms: Sequence[VmInfo], what: str, help: str) -> VmInfo:
    if len(vms) == 1:
        return vms[0]
    if not vms:
        raise errors.VmNotFound(f"{what} no KVM VM that we can see", help=_LIST_HELP)
    shown = ", ".join(f"pid {vm.pid} fd {vm.vm_fd} ({vm.name})" for vm in vms[:_SHOWN])
    more = f" and {len(vms) - _SHOWN} more" if len(vms) > _SHOWN else ""
    raise errors.VmNotFound(f"{what} {len(vms)} VMs: {shown}{more}", help=f"{help}; see `sevkvm list`")


def _all(proc: Path, same_file: SameFile) -> list[_Vm]:
    vms: list[_Vm] = []
    for holder in holding.holders(proc, same_file):
        for fds in holder.vms:
            for vm in vms:
                other, other_fds = vm.held[0]
                # within one process the descriptors are sorted by VM already
                if other.pid != holder.pid and holding.same(
                    same_file, other.pid, other_fds[0], holder.pid, fds[0]
                ):
                    vm.held.append((holder, fds))
                    break
            else:
                vms.append(_Vm([(holder, fds)]))
    return vms


def _describe(holder: Holder, fds: tuple[int, ...], others: tuple[int, ...], proc: Path) -> VmInfo:
    comm = procfs.stat(holder.pid, proc).comm
    name = qemuargs.parse(procfs.cmdline(holder.pid, proc)).name
    return VmInfo(
        pid=holder.pid,
        vm_fd=fds[0],
        vm_fds=fds,
        vcpu_fds=holder.vcpu_fds,
        vcpus_ambiguous=holder.vcpus_clash or (len(holder.vms) > 1 and bool(holder.vcpu_fds)),
        has_sev_device=holder.has_sev_device,
        name=_printable(name or comm),
        comm=_printable(comm),
        uid=procfs.status(holder.pid, proc).uid,
        holders=others,
    )


def _printable(text: str) -> str:
    """A program may call itself anything; a terminal must not be told."""
    return "".join(character if character.isprintable() else "?" for character in text)
