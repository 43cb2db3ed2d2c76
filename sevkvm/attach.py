"""The composition root: wire a Guest from outside, and unwind it in reverse.

Order matters: the VMM's monitor is asked before anything is stopped; the policy is checked before anything is
decrypted; what was attached, held or mapped is undone by the ``with`` that did it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from sevkvm import errors, native
from sevkvm.abi import sev
from sevkvm.guest import Guest, GuestParts
from sevkvm.host import discovery, sevdev
from sevkvm.host.deputy import Deputy
from sevkvm.host.kvm import VcpuFd, VmFd
from sevkvm.host.port import LocalPort
from sevkvm.memory.guest import GuestMemory
from sevkvm.memory.hva import HvaSource
from sevkvm.memory.policy import SevInfo, SevKind, ask_kernel, require_debug
from sevkvm.memory.sevdbg import SevDbgSource
from sevkvm.memory.source import Slot, SlotMap
from sevkvm.vcpu import cbit_from_cpuid, plausible_cbit

if TYPE_CHECKING:
    from sevkvm.host.discovery import VmInfo
    from sevkvm.host.port import IoctlPort
    from sevkvm.host.qmp import Monitor
    from sevkvm.host.slots import RawSlot

Warn = Callable[[str], None]


@dataclass(frozen=True)
class AttachOptions:
    """Which guest, and what the user knows about it. Addresses are ints; ``slots`` are ``GPA:SIZE:HVA``.

    ``timeout`` (seconds) bounds each single wait for the VMM or its monitor.
    """

    pid: int | None = None
    vm_fd: int | None = None
    qmp: str | None = None
    libvirt: str | None = None
    slots: tuple[str, ...] = ()
    cbit_pos: int | None = None
    cr3: int | None = None
    vcpu: int | None = None
    timeout: float = 5.0


@dataclass(frozen=True)
class GuestSummary:
    """One line of ``sevkvm list``; ``sev`` is ``unknown`` where ``reason`` says why it could not be asked."""

    pid: int
    vm_fd: int
    name: str
    vcpus: int
    sev: str
    policy: int | None = None
    debug_allowed: bool | None = None
    reason: str | None = None


@dataclass
class _MonitorFacts:
    """What the VMM's monitor told, asked while everything still ran."""

    slots: Sequence[RawSlot] = ()
    cbit_pos: int | None = None
    vcpu_tids: Sequence[int] = field(default_factory=tuple)


class _Hold:
    """Holds the vCPU threads through the deputy: those the monitor named, or every thread of the VMM."""

    def __init__(self, deputy: Deputy, tids: Sequence[int]) -> None:
        self._deputy = deputy
        self._tids = tids

    def hold(self) -> int:
        """Stop them; how many are held.

        Thread ids from another pid namespace name nobody here: then every thread is held.
        """
        if self._tids:
            held = self._deputy.hold(self._tids)
            if held == len(self._tids):
                return held
            self._deputy.release()
        return self._deputy.hold()

    def release(self) -> None:
        """Let them run."""
        self._deputy.release()


class _NoHold:
    """The VMM itself decides when its vCPUs run; as a library in its process we cannot stop our own threads."""

    def hold(self) -> int:
        """Do nothing."""
        return 0

    def release(self) -> None:
        """Do nothing."""


@contextmanager
def open_guest(
    options: AttachOptions, *, warn: Warn = lambda text: None, need_debug: bool = True
) -> Iterator[Guest]:
    """Attach to a running VMM's guest.

    With ``need_debug`` a policy that forbids debugging, and SEV-SNP, are refused here. Raises VmNotFound,
    AttachError, DebugForbidden, PlatformUnsupported, UsageError, TargetTimeout.
    """
    vm_info = discovery.resolve(options.pid, options.vm_fd)
    with ExitStack() as stack:
        facts = _ask_monitor(vm_info.pid, options, warn)
        slots = _slot_map(vm_info.pid, options, facts, warn, required=need_debug)
        port, holder = _enter(stack, vm_info.pid, facts.vcpu_tids, options.timeout)
        vm = VmFd(port, vm_info.vm_fd)
        info = ask_kernel(vm)
        if need_debug:
            require_debug(info)
        vcpus = [] if vm_info.vcpus_ambiguous else _vcpu_fds(port, vm_info)
        if info.encrypted:
            info = _with_cbit(info, options, facts, vcpus, holder)
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
                costs=lambda: _costs(port),
                warn=warn,
                no_registers=_why_no_registers(info, vm_info),
                cr3=options.cr3,
                vcpu=options.vcpu,
            )
        )


def list_guests(*, timeout: float = 5.0) -> list[GuestSummary]:
    """Every KVM VM on this host.

    What protects it only the kernel knows, so the VMM is attached to, briefly; not where the host has no SEV and the
    VMM no ``/dev/sev`` open: then nothing protects it.
    """
    host_has_sev = sevdev.host_has_sev()
    summaries = []
    for vm_info in discovery.find_vms():
        summary = GuestSummary(
            vm_info.pid, vm_info.vm_fd, vm_info.name, len(vm_info.vcpu_fds), SevKind.NONE.value
        )
        if host_has_sev or vm_info.has_sev_device:
            summary = _ask_protection(summary, timeout)
        summaries.append(summary)
    return summaries


def _ask_protection(summary: GuestSummary, timeout: float) -> GuestSummary:
    try:
        with ExitStack() as stack:
            port, _ = _enter(stack, summary.pid, (), timeout)
            info = ask_kernel(VmFd(port, summary.vm_fd))
    except errors.SevKvmError as error:
        return replace(summary, sev="unknown", reason=str(error))
    policy = info.policy
    return replace(
        summary,
        sev=info.kind.value,
        policy=policy.value if policy else None,
        debug_allowed=policy.debug_allowed if policy else (False if info.kind is SevKind.SEV_SNP else None),
    )


def _enter(
    stack: ExitStack, pid: int, vcpu_tids: Sequence[int], timeout: float
) -> tuple[IoctlPort, _Hold | _NoHold]:
    """A port into the VMM: ourselves if that is us, else a deputy thread."""
    if pid == os.getpid():
        return stack.enter_context(LocalPort()), _NoHold()
    deputy = stack.enter_context(Deputy(pid, timeout=timeout))
    return deputy, _Hold(deputy, vcpu_tids)


def _costs(port: IoctlPort) -> dict[str, int]:
    if not isinstance(port, Deputy):
        return {}
    info = port.info()
    return {"attach_ns": info.attach_ns, "borrowed_ns": info.borrowed_ns, "ioctls": info.calls}


def _vcpu_fds(port: IoctlPort, vm_info: VmInfo) -> list[VcpuFd]:
    return [VcpuFd(port, fd, index) for index, fd in sorted(vm_info.vcpu_fds.items())]


def _why_no_registers(info: SevInfo, vm_info: VmInfo) -> str | None:
    if info.kind is SevKind.SEV_ES:
        # what KVM returns for them is stale or zero, whatever its errno says
        return "this is a SEV-ES guest: its registers are encrypted"
    if vm_info.vcpus_ambiguous:
        return "the process has several VMs, and the kernel does not tell whose vCPUs are whose"
    if not vm_info.vcpu_fds:
        return "the VMM has no vCPU descriptor open"
    return None


# ---- what the monitor, the command line and the user tell


def _ask_monitor(pid: int, options: AttachOptions, warn: Warn) -> _MonitorFacts:
    """Ask an explicit monitor, or one that the VMM's command line names; only the first may fail us."""
    if options.qmp is None and options.libvirt is None and options.slots and options.cbit_pos is not None:
        return _MonitorFacts()
    explicit = options.qmp is not None or options.libvirt is not None
    try:
        monitor = _open_monitor(pid, options)
        if monitor is None:
            return _MonitorFacts()
        with closing(monitor):
            return _question(monitor, pid, options)
    except errors.SevKvmError as error:
        if explicit:
            raise
        warn(f"the VMM's monitor could not be asked ({error}); going on without it")
        return _MonitorFacts()


def _open_monitor(pid: int, options: AttachOptions) -> Monitor | None:
    if options.qmp is not None and options.libvirt is not None:
        raise errors.UsageError("--qmp and --libvirt both name a monitor", help="give one of them")
    if options.libvirt is not None:
        from sevkvm.host.virsh import VirshMonitor

        return VirshMonitor(options.libvirt, timeout=options.timeout)
    path = options.qmp
    if path is None:
        from sevkvm.host.monitors import monitor_socket

        path = monitor_socket(pid, patience=min(1.0, options.timeout))
    if path is None:
        return None
    from sevkvm.host.qmp import QmpMonitor

    return QmpMonitor(path, timeout=options.timeout)


def _question(monitor: Monitor, pid: int, options: AttachOptions) -> _MonitorFacts:
    from sevkvm.host import monitorfacts, slots

    return _MonitorFacts(
        slots=() if options.slots else slots.from_monitor(monitor, pid),
        cbit_pos=None if options.cbit_pos is not None else monitorfacts.cbit_position(monitor),
        vcpu_tids=tuple(monitorfacts.vcpu_thread_ids(monitor).values()),
    )


def _slot_map(
    pid: int, options: AttachOptions, facts: _MonitorFacts, warn: Warn, *, required: bool
) -> SlotMap:
    """From --slot, else the monitor, else /proc/PID/maps with a warning."""
    from sevkvm.host import slots

    if options.slots:
        raw: Sequence[RawSlot] = slots.from_user(options.slots, pid)
    elif facts.slots:
        raw = facts.slots
    else:
        try:
            guess = slots.from_maps(pid)
        except errors.SevKvmError as error:
            if required:
                raise
            warn(str(error))
            return SlotMap(())
        warn(guess.warning)
        raw = guess.slots
    return SlotMap(Slot(slot.gpa, slot.nbytes, slot.hva, slot.name, slot.readonly) for slot in raw)


# ---- the C-bit


def _with_cbit(
    info: SevInfo,
    options: AttachOptions,
    facts: _MonitorFacts,
    vcpus: Sequence[VcpuFd],
    holder: _Hold | _NoHold,
) -> SevInfo:
    """The C-bit position, from whoever knows it first; unknown stays None and is refused where it is needed."""
    if options.cbit_pos is not None:
        if plausible_cbit(options.cbit_pos) is None:
            raise errors.UsageError(
                f"bit {options.cbit_pos} cannot be the C-bit",
                help="it is one of 32 to 51; 47 or 51 on EPYC so far",
            )
        return replace(info, cbit_pos=options.cbit_pos, cbit_source="option")
    if facts.cbit_pos is not None:
        return replace(info, cbit_pos=facts.cbit_pos, cbit_source="qmp")
    position = _guest_cbit(vcpus, holder)
    if position is not None:
        return replace(info, cbit_pos=position, cbit_source="guest-cpuid")
    _, ebx, _, _ = native.cpuid(sev.CPUID_LEAF)
    position = plausible_cbit(ebx & sev.CPUID_EBX_CBIT_MASK)
    if position is not None:
        return replace(info, cbit_pos=position, cbit_source="host-cpuid")
    return info


def _guest_cbit(vcpus: Sequence[VcpuFd], holder: _Hold | _NoHold) -> int | None:
    """What the first vCPU's CPUID tells its guest; that vCPU must not run while it is asked."""
    if not vcpus:
        return None
    holder.hold()
    try:
        return cbit_from_cpuid(vcpus[0].get_cpuid2())
    except errors.IoctlError:
        return None  # a VMM that set no CPUID, or a vCPU whose state is protected
    finally:
        holder.release()
