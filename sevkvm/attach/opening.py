"""Open a guest: the one place where everything is wired together, and unwound in reverse."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from sevkvm.abi.x86 import PAGE_SHIFT
from sevkvm.attach.cbit import with_cbit
from sevkvm.attach.entry import costs, enter
from sevkvm.attach.told import ask_monitor, slot_map
from sevkvm.guest import Guest, GuestParts
from sevkvm.host import discovery
from sevkvm.host.backing import Backing
from sevkvm.host.kvm import VcpuFd, VmFd
from sevkvm.memory.guest import GuestMemory
from sevkvm.memory.hva import HvaSource
from sevkvm.memory.policy import SevInfo, SevKind, ask_kernel, require_debug
from sevkvm.memory.sevdbg import SevDbgSource

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sevkvm.attach.options import AttachOptions, Warn
    from sevkvm.host.discovery import VmInfo
    from sevkvm.host.port import IoctlPort
    from sevkvm.linux.ram import Progress


@contextmanager
def open_guest(
    options: AttachOptions,
    *,
    warn: Warn = lambda text: None,
    searching: Progress = lambda done, limit: None,
    need_debug: bool = True,
) -> Iterator[Guest]:
    """Attach to a running VMM's guest.

    ``searching`` is told (pages read, pages at most) while the guest's memory is searched for its kernel.
    With ``need_debug`` a policy that forbids debugging, and SEV-SNP, are refused here. Raises VmNotFound,
    AttachError, DebugForbidden, PlatformUnsupported, UsageError, TargetTimeout.
    """
    vm_info = discovery.resolve(options.pid, options.vm_fd, domain=options.libvirt)
    with ExitStack() as stack:
        facts = ask_monitor(vm_info.pid, options, warn)
        told = slot_map(vm_info.pid, options, facts, warn, required=True) if options.slots else None
        port, holder = enter(stack, vm_info.pid, facts.vcpu_tids, options.timeout)
        vm = VmFd(port, vm_info.vm_fd)
        info = ask_kernel(vm)
        if need_debug:
            require_debug(info)
        # a wrong --slot is refused before anything is touched, unknown slots only once the policy allows a look
        slots = told or slot_map(vm_info.pid, options, facts, warn, required=need_debug)
        vcpus = [] if vm_info.vcpus_ambiguous else _vcpu_fds(port, vm_info)
        if info.encrypted:
            info = with_cbit(info, options, facts, vcpus, holder)
        memory = GuestMemory(slots, HvaSource(port), SevDbgSource(vm) if info.encrypted else None)
        yield Guest(
            GuestParts(
                pid=vm_info.pid,
                vm_fd=vm_info.vm_fd,
                name=vm_info.name,
                sev=info,
                slots=slots,
                memory=memory,
                vcpus=vcpus,
                holder=holder,
                costs=lambda: costs(port),
                warn=warn,
                no_registers=why_no_registers(info, vm_info),
                cr3=options.cr3,
                vcpu=options.vcpu,
                paging=options.paging,
                search_pages=options.search_limit >> PAGE_SHIFT,
                searching=searching,
                backing=Backing(vm_info.pid),
            )
        )


def _vcpu_fds(port: IoctlPort, vm_info: VmInfo) -> list[VcpuFd]:
    return [VcpuFd(port, fd, index) for index, fd in sorted(vm_info.vcpu_fds.items())]


def why_no_registers(info: SevInfo, vm_info: VmInfo) -> str | None:
    """Why its vCPUs' registers cannot be known, or None."""
    if info.kind is SevKind.SEV_ES:
        # what KVM returns for them is stale or zero, whatever its errno says
        return "this is a SEV-ES guest: its registers are encrypted"
    if vm_info.vcpus_ambiguous:
        return "the process has several VMs, and the kernel does not tell whose vCPUs are whose"
    if not vm_info.vcpu_fds:
        return "the VMM has no vCPU descriptor open"
    return None
