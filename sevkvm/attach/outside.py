"""The VMM's monitor and the host's page tables, behind the questions of ``monitor``."""

from __future__ import annotations

import os
from contextlib import closing
from typing import TYPE_CHECKING, Final

from sevkvm import errors
from sevkvm.abi.x86 import PAGE_MASK, PAGE_NBYTES, PAGE_SHIFT
from sevkvm.attach.told import open_monitor
from sevkvm.host import monitorfacts
from sevkvm.host.procfs import PROC

if TYPE_CHECKING:
    from pathlib import Path

    from sevkvm.attach.options import AttachOptions, Warn

_ENTRY_NBYTES: Final = 8
_PRESENT: Final = 1 << 63
_FRAME_MASK: Final = (1 << 55) - 1


class Outside:
    """Connects to the VMM's monitor for each question and leaves it again: others may want it in between.

    A monitor that nobody named and that cannot be asked is done without, with one warning.
    """

    def __init__(self, pid: int, options: AttachOptions, warn: Warn, proc: Path = PROC) -> None:
        self._pid = pid
        self._options = options
        self._warn = warn
        self._proc = proc
        self._warned = False

    def ask(self, command: str) -> str | None:
        """What the human monitor prints; None where there is no monitor to ask."""
        try:
            monitor = open_monitor(self._pid, self._options, self._proc)
            if monitor is None:
                return None
            with closing(monitor):
                return monitor.hmp(command)
        except errors.SevKvmError as error:
            self._without(error)
            return None

    def thread_ids(self) -> dict[int, int]:
        """By vCPU, in the VMM's pid namespace."""
        try:
            monitor = open_monitor(self._pid, self._options, self._proc)
            if monitor is None:
                return {}
            with closing(monitor):
                return monitorfacts.vcpu_thread_ids(monitor)
        except errors.SevKvmError as error:
            self._without(error)
            return {}

    def hpa(self, hva: int) -> int:
        """From /proc/PID/pagemap (Linux Documentation/admin-guide/mm/pagemap.rst); needs CAP_SYS_ADMIN."""
        try:
            with open(f"{self._proc}/{self._pid}/pagemap", "rb", buffering=0) as file:
                raw = os.pread(file.fileno(), _ENTRY_NBYTES, (hva >> PAGE_SHIFT) * _ENTRY_NBYTES)
        except OSError as error:
            raise errors.AttachError(
                f"the page map of process {self._pid} cannot be read: {error.strerror}", pid=self._pid
            ) from error
        entry = int.from_bytes(raw, "little")
        if len(raw) < _ENTRY_NBYTES or not entry & _PRESENT:
            raise errors.MemoryFault("hva", hva, reason="no page of the host is there now")
        if not entry & _FRAME_MASK:
            raise errors.AttachError(
                "the kernel does not tell page frame numbers",
                pid=self._pid,
                help="CAP_SYS_ADMIN is needed for them",
            )
        return (entry & _FRAME_MASK) * PAGE_NBYTES + (hva & PAGE_MASK)

    def _without(self, error: errors.SevKvmError) -> None:
        if self._options.qmp is not None or self._options.libvirt is not None:
            raise error
        if not self._warned:
            self._warned = True
            self._warn(f"the VMM's monitor could not be asked ({error}); going on without it")
