"""What the VMM's monitor tells the doctor, and whether somebody else holds it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sevkvm import errors
from sevkvm.attach.told import open_monitor
from sevkvm.doctor.finding import Finding, passed, refused, skipped, warned
from sevkvm.host import monitorfacts, procfs, qemuargs, slots

if TYPE_CHECKING:
    from sevkvm.attach.options import AttachOptions
    from sevkvm.doctor.machine import Machine
    from sevkvm.host.monitorfacts import MonitorSev
    from sevkvm.host.qmp import Monitor
    from sevkvm.host.slots import RawSlot

_FREE_HELP = "start QEMU with one more -qmp unix:PATH,server=on,wait=off, or name the memory with --slot"


@dataclass(frozen=True)
class MonitorTold:
    """All of it None or empty where there is no monitor, or it did not say."""

    finding: Finding
    slots: Sequence[RawSlot] = ()
    cbit_pos: int | None = None
    sev: MonitorSev | None = None


def ask(machine: Machine, pid: int, options: AttachOptions) -> MonitorTold:
    """Ask as attaching would: an explicit monitor must answer, one of the command line may fail."""
    explicit = options.qmp is not None or options.libvirt is not None
    try:
        monitor = open_monitor(pid, options, machine.proc)
        if monitor is None:
            return MonitorTold(_none(machine, pid))
        with closing(monitor):
            return _question(monitor, machine, pid)
    except errors.UsageError:
        raise
    except errors.SevKvmError as error:
        if explicit:
            return MonitorTold(refused("monitor", error))
        return MonitorTold(warned("monitor", str(error), error.help))


def _none(machine: Machine, pid: int) -> Finding:
    argv = procfs.cmdline(pid, machine.proc)
    name = qemuargs.parse(argv).name
    if not qemuargs.is_qemu(argv):
        return skipped("monitor", "not a QEMU")
    if any("/libvirt/" in word for word in argv):
        return warned("monitor", "libvirt holds it", f"--libvirt {name or 'DOMAIN'} asks through virsh")
    return warned("monitor", "the command line names no QMP socket on which QEMU listens", _FREE_HELP)


def _question(monitor: Monitor, machine: Machine, pid: int) -> MonitorTold:
    state = monitorfacts.run_state(monitor)
    address = getattr(monitor, "address", None)
    where = f"QMP at {address}" if address else "through virsh"
    told = MonitorTold(passed("monitor", f"{where}, answers; the VM is {state}"))
    try:
        return replace(
            told,
            cbit_pos=monitorfacts.cbit_position(monitor),
            sev=monitorfacts.sev_info(monitor),
            slots=slots.from_monitor(monitor, pid, machine.proc),
        )
    except errors.SevKvmError as error:
        return replace(told, finding=warned("monitor", f"{where}: {error}", error.help))
