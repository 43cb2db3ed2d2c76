"""The way in: a port to the VMM, what it says of the guest, and who keeps the vCPUs from running."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sevkvm import errors
from sevkvm.attach.holding import DeputyHold, NoHold
from sevkvm.attach.options import Needs
from sevkvm.host.deputy import Deputy
from sevkvm.host.kvm import VcpuFd, VmFd
from sevkvm.host.port import LocalPort
from sevkvm.memory.policy import SevInfo, ask_kernel

if TYPE_CHECKING:
    from sevkvm.attach.options import AttachOptions, Warn
    from sevkvm.attach.told import MonitorFacts
    from sevkvm.guestparts import Holder, Vcpu
    from sevkvm.host.discovery import VmInfo
    from sevkvm.host.port import IoctlPort
    from sevkvm.memory.source import SlotMap


@dataclass
class Way:
    """``vcpu_fds`` can be asked by ioctl, ``vcpus`` tell registers; ``vm`` is None where there is nothing to decrypt.

    ``costs``: what it has cost so far, by name. ``show`` makes guest memory reachable, or raises MirrorUnavailable.
    ``remark``: why it is not another way. ``no_registers``: why this way leads to none, if it does not. ``aloof``
    as in GuestParts. ``close`` leaves it.
    """

    name: str
    port: IoctlPort
    vm: VmFd | None
    info: SevInfo
    holder: Holder
    close: Callable[[], None]
    costs: Callable[[], dict[str, int]] = dict
    show: Callable[[SlotMap, Warn], None] = lambda slots, warn: None
    vcpu_fds: Sequence[VcpuFd] = ()
    vcpus: Sequence[Vcpu] = ()
    aloof: bool = False
    no_registers: str | None = None
    remark: str | None = None


def enter(
    vm_info: VmInfo,
    facts: MonitorFacts,
    options: AttachOptions,
    needs: Needs,
    reach: tuple[int, int] | None = None,
) -> Way:
    """The way that ``options.via`` names; ``auto`` is the mirror where it gives all that is needed, else the deputy.

    ``reach``: of Needs.MEMORY just these guest-physical addresses.
    """
    via = options.via or "auto"
    own = vm_info.pid == os.getpid()
    if own and via == "mirror":
        raise errors.UsageError("a VMM needs no mirror of its own VM", help="--via local")
    if via == "local" and not own:
        raise errors.UsageError(
            "--via local is for programs that are the VMM and use sevkvm as a library",
            help=f"process {vm_info.pid} is another one: --via deputy, or --via mirror",
        )
    if via == "mirror":
        from sevkvm.attach.mirrored import mirror_or_plain

        return mirror_or_plain(vm_info, options, needs)
    remark = None
    if via == "auto" and not own and needs is not Needs.ALL:
        from sevkvm.attach.mirrored import whole_mirror

        try:
            return whole_mirror(vm_info, options, needs, reach)
        except errors.MirrorUnavailable as refusal:
            remark = str(refusal)
    return enter_vmm(vm_info, facts.vcpu_tids, options.timeout, remark)


def enter_vmm(vm_info: VmInfo, vcpu_tids: Sequence[int], timeout: float, remark: str | None = None) -> Way:
    """Ourselves if that is us, else a deputy thread."""
    with ExitStack() as stack:
        port: IoctlPort
        if vm_info.pid == os.getpid():
            port = stack.enter_context(LocalPort())
            way = _inside("local", port, NoHold(), vm_info, stack.close)
        else:
            port = deputy = stack.enter_context(Deputy(vm_info.pid, timeout=timeout))
            way = _inside("deputy", port, DeputyHold(deputy, vcpu_tids), vm_info, stack.close)
            way.costs = lambda: _costs(deputy)
        way.remark = remark if way.info.encrypted else None
        way.close = stack.pop_all().close
        return way


def _inside(name: str, port: IoctlPort, holder: Holder, vm_info: VmInfo, close: Callable[[], None]) -> Way:
    vm = VmFd(port, vm_info.vm_fd)
    known = {} if vm_info.vcpus_ambiguous else vm_info.vcpu_fds
    vcpus = [VcpuFd(port, fd, index) for index, fd in sorted(known.items())]
    return Way(name, port, vm, ask_kernel(vm), holder, close, vcpu_fds=vcpus, vcpus=vcpus)


def _costs(deputy: Deputy) -> dict[str, int]:
    info = deputy.info()
    return {"attach_ns": info.attach_ns, "borrowed_ns": info.borrowed_ns, "ioctls": info.calls}
