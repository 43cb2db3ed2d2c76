"""The way in that leaves the VMM alone: a mirror VM, or of a guest that is not encrypted, just its memory."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from sevkvm import errors
from sevkvm.attach.entry import Way
from sevkvm.attach.holding import MonitorHold
from sevkvm.attach.options import Needs
from sevkvm.attach.told import find_monitor
from sevkvm.host import sevdev
from sevkvm.host.kvm import VmFd
from sevkvm.host.mapped import PlainPort
from sevkvm.host.mirror import Mirror
from sevkvm.host.monitorvcpu import MonitorRegisters, MonitorVcpu
from sevkvm.memory.policy import SevInfo, SevKind, ask_kernel

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sevkvm.attach.options import AttachOptions, Warn
    from sevkvm.attach.told import MonitorPlace
    from sevkvm.host.discovery import VmInfo
    from sevkvm.host.mapped import MappedVmm
    from sevkvm.memory.source import Slot, SlotMap

_SHARE_HELP = (
    "the VMM must have guest RAM in shared memory (QEMU: -object memory-backend-memfd,share=on);"
    " --via deputy needs no such thing"
)
_NO_MONITOR = "the VMM's command line names no QMP socket"


def mirror_or_plain(vm_info: VmInfo, options: AttachOptions, needs: Needs) -> Way:
    """``--via mirror``: what memory cannot be mapped is missing. MirrorUnavailable, TargetTimeout."""
    with ExitStack() as stack:
        try:
            mirror = stack.enter_context(Mirror(vm_info.pid, vm_info.vm_fd, timeout=options.timeout))
        except errors.MirrorUnavailable as refusal:
            if not _is_plain(vm_info, refusal):
                raise
            port = stack.enter_context(PlainPort(vm_info.pid))
            way = _way(port, None, SevInfo(SevKind.NONE), vm_info, options, needs)
            way.remark = "the guest is not encrypted: its memory is read as it is, without a mirror VM"
        else:
            vm = VmFd(mirror, mirror.vm_fd)
            way = _way(mirror, vm, ask_kernel(vm), vm_info, options, needs)
        way.close = stack.pop_all().close
        return way


def whole_mirror(vm_info: VmInfo, options: AttachOptions, needs: Needs, reach: tuple[int, int] | None) -> Way:
    """A mirror of an encrypted guest with all memory within ``reach``, else MirrorUnavailable, here or by ``show``."""
    with ExitStack() as stack:
        mirror = stack.enter_context(Mirror(vm_info.pid, vm_info.vm_fd, timeout=options.timeout))
        vm = VmFd(mirror, mirror.vm_fd)
        way = _way(mirror, vm, ask_kernel(vm), vm_info, options, needs)
        way.show = lambda slots, warn: _show_all(mirror, slots, reach)
        way.close = stack.pop_all().close
        return way


def _is_plain(vm_info: VmInfo, refusal: errors.MirrorUnavailable) -> bool:
    """No VM of this host can be, or the kernel finds that this one is not: a mirror's owner has ``/dev/sev`` open."""
    return not vm_info.has_sev_device and (refusal.copy_refused or not sevdev.host_has_sev())


def _way(
    port: Mirror | PlainPort,
    vm: VmFd | None,
    info: SevInfo,
    vm_info: VmInfo,
    options: AttachOptions,
    needs: Needs,
) -> Way:
    place, why = _monitor(vm_info.pid, options, needs)
    holder = MonitorHold(place, why, options.timeout)
    registers = MonitorRegisters(holder.ask)
    known = () if vm_info.vcpus_ambiguous else sorted(vm_info.vcpu_fds)
    return Way(
        "mirror",
        port,
        vm,
        info,
        holder,
        port.close,
        costs=lambda: _costs(port),
        show=lambda slots, warn: _show_ram(port, slots, warn),
        vcpus=[MonitorVcpu(registers, index) for index in known],
        aloof=True,
        no_registers=None
        if place
        else f"a mirror has no registers, and no monitor could be asked ({why}; see --qmp)",
    )


def _costs(port: MappedVmm) -> dict[str, int]:
    return {"attach_ns": port.attach_ns, "ioctls": port.calls} if isinstance(port, Mirror) else {}


def _monitor(pid: int, options: AttachOptions, needs: Needs) -> tuple[MonitorPlace | None, str]:
    if needs is Needs.STATUS:
        return None, "no monitor was looked for"
    try:
        return find_monitor(pid, options), _NO_MONITOR
    except errors.AttachError as error:
        return None, str(error)


def _show_all(port: Mirror, slots: SlotMap, reach: tuple[int, int] | None) -> None:
    """Map all slots that have memory within ``reach`` (gpas; None: all there are) here, or MirrorUnavailable."""
    start, end = reach or (0, 1 << 64)
    for slot, why in _hidden(port, [slot for slot in slots if slot.gpa < end and slot.end > start]):
        raise errors.MirrorUnavailable(
            f"{_called(slot)} cannot be mapped: {why}", pid=port.pid, help=_SHARE_HELP
        )


def _show_ram(port: MappedVmm, slots: SlotMap, warn: Warn) -> None:
    """Map what can be mapped; MirrorUnavailable if that is no RAM at all. What is missing is told when it is missed."""
    hidden = _hidden(port, slots)
    if not hidden or isinstance(port, PlainPort):
        return
    unmapped = {slot for slot, _ in hidden}
    # RAM is what is large: of an encrypted guest QEMU gives its firmware as RAM, too
    largest, why = max(hidden, key=lambda each: each[0].nbytes)
    if all(slot in unmapped for slot in slots if slot.nbytes >= largest.nbytes):
        raise errors.MirrorUnavailable(
            f"{_called(largest)} cannot be mapped: {why}", pid=port.pid, help=_SHARE_HELP
        )
    names = ", ".join(_called(slot) for slot, _ in hidden[:4]) + (", ..." if len(hidden) > 4 else "")
    nbytes = sum(slot.nbytes for slot in unmapped)
    port.on_hidden = lambda: warn(
        f"0x{nbytes:x} bytes are out of the mirror's reach, and cannot be decrypted: {names}: {why};"
        " --via deputy reads them"
    )


def _hidden(port: MappedVmm, slots: Iterable[Slot]) -> list[tuple[Slot, str]]:
    slots = list(slots)
    reasons = port.show((slot.hva, slot.nbytes) for slot in slots)
    return [(slot, why) for slot, why in zip(slots, reasons, strict=True) if why is not None]


def _called(slot: Slot) -> str:
    return f"{slot.name or 'memory'} at gpa 0x{slot.gpa:x}"
