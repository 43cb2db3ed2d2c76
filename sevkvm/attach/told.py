"""What others tell of a guest before anything is stopped: the VMM's monitor, its command line, the user."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, NamedTuple

from sevkvm import errors
from sevkvm.host.procfs import PROC
from sevkvm.memory.source import Slot, SlotMap

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sevkvm.attach.options import AttachOptions, Warn
    from sevkvm.host.qmp import Monitor
    from sevkvm.host.slots import RawSlot


class MonitorFacts(NamedTuple):
    """What the VMM's monitor told, asked while everything still ran."""

    slots: Sequence[RawSlot] = ()
    cbit_pos: int | None = None
    vcpu_tids: Sequence[int] = ()


def ask_monitor(pid: int, options: AttachOptions, warn: Warn) -> MonitorFacts:
    """Ask an explicit monitor, or one that the VMM's command line names; only the first may fail us."""
    if options.qmp is None and options.libvirt is None and options.slots and options.cbit_pos is not None:
        return MonitorFacts()
    explicit = options.qmp is not None or options.libvirt is not None
    try:
        monitor = open_monitor(pid, options)
        if monitor is None:
            return MonitorFacts()
        with closing(monitor):
            return _question(monitor, pid, options)
    except errors.SevKvmError as error:
        if explicit:
            raise
        warn(f"the VMM's monitor could not be asked ({error}); going on without it")
        return MonitorFacts()


class MonitorPlace(NamedTuple):
    """Where a monitor is: a QMP socket's ``address``, or libvirt's ``domain``."""

    address: str | None
    domain: str | None

    def connect(self, timeout: float) -> Monitor:
        """Talk to it."""
        if self.domain is not None:
            from sevkvm.host.virsh import VirshMonitor

            return VirshMonitor(self.domain, timeout=timeout)
        from sevkvm.host.qmp import QmpMonitor

        assert self.address is not None
        return QmpMonitor(self.address, timeout=timeout)


def find_monitor(pid: int, options: AttachOptions, proc: Path = PROC) -> MonitorPlace | None:
    """The monitor that the options name, else a free one of the command line; None if that names none."""
    if options.qmp is not None and options.libvirt is not None:
        raise errors.UsageError("--qmp and --libvirt both name a monitor", help="give one of them")
    if options.libvirt is not None:
        return MonitorPlace(None, options.libvirt)
    path = options.qmp
    if path is None:
        from sevkvm.host.monitors import monitor_socket

        path = monitor_socket(pid, proc, patience=min(1.0, options.timeout))
    return None if path is None else MonitorPlace(path, None)


def open_monitor(pid: int, options: AttachOptions, proc: Path = PROC) -> Monitor | None:
    """That monitor, or None."""
    place = find_monitor(pid, options, proc)
    return None if place is None else place.connect(options.timeout)


def _question(monitor: Monitor, pid: int, options: AttachOptions) -> MonitorFacts:
    from sevkvm.host import monitorfacts, slots

    return MonitorFacts(
        slots=() if options.slots else slots.from_monitor(monitor, pid),
        cbit_pos=None if options.cbit_pos is not None else monitorfacts.cbit_position(monitor),
        vcpu_tids=tuple(monitorfacts.vcpu_thread_ids(monitor).values()),
    )


def slot_map(pid: int, options: AttachOptions, facts: MonitorFacts, warn: Warn, *, required: bool) -> SlotMap:
    """From --slot, else the monitor, else /proc/PID/maps with a warning."""
    from sevkvm.host import slots

    guessed = False
    if options.slots:
        raw: Sequence[RawSlot] = slots.from_user(options.slots, pid)
    elif facts.slots:
        raw = facts.slots
    else:
        guessed = True
        try:
            guess = slots.from_maps(pid)
        except errors.SevKvmError as error:
            if required:
                raise
            warn(str(error))
            return SlotMap(())
        warn(guess.warning)
        raw = guess.slots
    return SlotMap(Slot(*slot, guessed=guessed) for slot in raw)
