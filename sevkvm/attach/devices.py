"""The registers of the guest's devices, as the VMM's monitor reads them, for a Guest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sevkvm import errors
from sevkvm.attach.told import open_monitor
from sevkvm.host.procfs import PROC

if TYPE_CHECKING:
    from pathlib import Path

    from sevkvm.attach.options import AttachOptions
    from sevkvm.host.mmio import DeviceMonitor


class MonitorDevices:
    """Connects to the monitor for the first question and stays until ``close``: a command has many questions."""

    def __init__(self, pid: int, options: AttachOptions, proc: Path = PROC) -> None:
        self._pid = pid
        self._options = options
        self._proc = proc
        self._asked: DeviceMonitor | None = None

    def read(self, gpa: int, nbytes: int) -> bytes:
        """As ``DeviceMonitor.read``; MemoryFault, too, where no monitor is known."""
        asked = self._open()
        if asked is None:
            raise errors.MemoryFault(
                "gpa",
                gpa,
                reason="not guest RAM, and no monitor of the VMM is known that could read a device",
                help="name it with --qmp SOCKET or --libvirt DOMAIN",
            )
        return asked.read(gpa, nbytes)

    def paused(self) -> bool:
        """By ``query-status``, which waits for no vCPU. Where nobody tells, the guest is taken to run."""
        from sevkvm.host import monitorfacts

        asked = self._open()
        return asked is not None and monitorfacts.run_state(asked.monitor) != "running"

    def close(self) -> None:
        """Hang up; the next question connects again."""
        asked, self._asked = self._asked, None
        if asked is not None:
            asked.close()

    def _open(self) -> DeviceMonitor | None:
        if self._asked is None:
            monitor = open_monitor(self._pid, self._options, self._proc)
            if monitor is not None:
                from sevkvm.host.mmio import DeviceMonitor

                self._asked = DeviceMonitor(monitor)
        return self._asked
