"""Who keeps a guest's vCPUs from running, for each way in."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from sevkvm import errors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sevkvm.attach.told import MonitorPlace
    from sevkvm.host.deputy import Deputy
    from sevkvm.host.keeper import KeptMonitor


class DeputyHold:
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


class NoHold:
    """The VMM itself decides when its vCPUs run; as a library in its process we cannot stop our own threads."""

    def hold(self) -> int:
        """Do nothing."""
        return 0

    def release(self) -> None:
        """Do nothing."""


class MonitorHold:
    """Stops the VM through its monitor; a process of its own lets it run again, whatever becomes of us.

    It is more than a pause: QEMU drains its disks, and management software sees the VM as paused.

    ``place`` None: there is no monitor, for the reason ``why``.
    """

    def __init__(self, place: MonitorPlace | None, why: str, timeout: float) -> None:
        self._place = place
        self._why = why
        self._timeout = timeout
        self._kept: KeptMonitor | None = None

    def hold(self) -> int:
        """Stop the VM unless it stands still already. AttachError where there is nobody to ask."""
        if self._place is None:
            raise errors.AttachError(
                f"the guest cannot be made to stand still: a mirror stops nothing, and {self._why}",
                help="name the VMM's monitor with --qmp SOCKET or --libvirt DOMAIN, let the guest run (--live),"
                " or go in with --via deputy",
            )
        from sevkvm.host.keeper import KeptMonitor

        kept = KeptMonitor(self._place.address, self._place.domain, self._timeout)
        try:
            stopped = kept.stop()
        except BaseException:
            kept.close()
            raise
        self._kept = kept
        return int(stopped)

    def release(self) -> None:
        """Let the VM run if it did before."""
        kept, self._kept = self._kept, None
        if kept is not None:
            try:
                kept.cont()
            finally:
                kept.close()

    def ask(self, command: str) -> str:
        """What the human monitor prints; the connection is the keeper's while the VM is held."""
        if self._kept is not None:
            return self._kept.hmp(command)
        if self._place is None:
            raise errors.AttachError(f"there is no monitor to ask: {self._why}")
        with closing(self._place.connect(self._timeout)) as monitor:
            return monitor.hmp(command)
