"""Open a guest: the one place where everything is wired together, and unwound in reverse."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from sevkvm import errors
from sevkvm.abi.x86 import PAGE_SHIFT
from sevkvm.attach.cbit import with_cbit
from sevkvm.attach.entry import enter, enter_vmm
from sevkvm.attach.options import Needs
from sevkvm.attach.told import ask_monitor, slot_map
from sevkvm.guest import Guest
from sevkvm.guestparts import GuestParts
from sevkvm.host import discovery
from sevkvm.host.backing import Backing
from sevkvm.memory.guest import GuestMemory
from sevkvm.memory.hva import HvaSource
from sevkvm.memory.policy import SevInfo, SevKind, require_debug
from sevkvm.memory.sevdbg import SevDbgSource

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sevkvm.attach.devices import MonitorDevices
    from sevkvm.attach.entry import Way
    from sevkvm.attach.options import AttachOptions, Warn
    from sevkvm.attach.told import MonitorFacts
    from sevkvm.host.discovery import VmInfo
    from sevkvm.linux.ram import Progress
    from sevkvm.memory.source import SlotMap


@contextmanager
def open_guest(
    options: AttachOptions,
    *,
    warn: Warn = lambda text: None,
    searching: Progress = lambda done, limit: None,
    need_debug: bool = True,
    needs: Needs = Needs.ALL,
    reach: tuple[int, int] | None = None,
) -> Iterator[Guest]:
    """Attach to a running VMM's guest.

    ``searching`` is told (pages read, pages at most) while the guest's memory is searched for its kernel.
    With ``need_debug`` a policy that forbids debugging, and SEV-SNP, are refused here. Who ``needs`` less than all, or
    memory within ``reach`` only (gpas, half-open), may be given a guest that does not do more. Raises VmNotFound,
    AttachError, DebugForbidden, PlatformUnsupported, UsageError, TargetTimeout.
    """
    vm_info = discovery.resolve(options.pid, options.vm_fd, domain=options.libvirt)
    with ExitStack() as stack:
        facts = ask_monitor(vm_info.pid, options, warn)
        told = slot_map(vm_info.pid, options, facts, warn, required=True) if options.slots else None
        way = enter(vm_info, facts, options, needs, reach)
        left = stack.enter_context(ExitStack())
        left.callback(way.close)
        if need_debug:
            require_debug(way.info)
        # a wrong --slot is refused before anything is touched, unknown slots only once the policy allows a look
        slots = told or slot_map(vm_info.pid, options, facts, warn, required=need_debug)
        try:
            info = _readied(way, slots, options, facts, needs, warn)
        except errors.MirrorUnavailable as refusal:
            if options.via == "mirror":
                raise
            left.close()
            way = enter_vmm(vm_info, facts.vcpu_tids, options.timeout, str(refusal))
            left.callback(way.close)
            info = _readied(way, slots, options, facts, needs, warn)
        vm = way.vm if info.encrypted else None
        memory = GuestMemory(slots, HvaSource(way.port), None if vm is None else SevDbgSource(vm))
        yield Guest(
            GuestParts(
                pid=vm_info.pid,
                vm_fd=vm_info.vm_fd,
                name=vm_info.name,
                sev=info,
                slots=slots,
                memory=memory,
                vcpus=way.vcpus,
                holder=way.holder,
                costs=way.costs,
                warn=warn,
                no_registers=why_no_registers(info, vm_info) or way.no_registers,
                cr3=options.cr3,
                vcpu=options.vcpu,
                paging=options.paging,
                search_pages=options.search_limit >> PAGE_SHIFT,
                searching=searching,
                backing=Backing(vm_info.pid),
                devices=_devices(stack, vm_info.pid, options) if options.mmio else None,
                aloof=way.aloof,
                way=way.name,
                way_remark=way.remark,
            )
        )


def _devices(stack: ExitStack, pid: int, options: AttachOptions) -> MonitorDevices:
    from sevkvm.attach.devices import MonitorDevices  # most commands read none

    devices = MonitorDevices(pid, options)
    stack.callback(devices.close)
    return devices


def _readied(
    way: Way, slots: SlotMap, options: AttachOptions, facts: MonitorFacts, needs: Needs, warn: Warn
) -> SevInfo:
    """Memory is within reach, the C-bit known if it can be. MirrorUnavailable where another way does more."""
    info = way.info
    if info.encrypted:
        info = with_cbit(info, options, facts, way.vcpu_fds, way.holder)
        if way.name == "mirror" and info.cbit_pos is None and options.via != "mirror":
            raise errors.MirrorUnavailable("nobody but a vCPU's CPUID tells the C-bit's position")
    if needs is not Needs.STATUS:
        way.show(slots, warn)
    return info


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
