"""Registers of a guest's devices, read through QEMU's monitor: an access as wide as asked for, never a second one.

``xp`` reads a line at a time, so that each access is a question of its own. Its answers are hostile input.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from sevkvm import errors
from sevkvm.host import mtree

if TYPE_CHECKING:
    from sevkvm.host.mtree import Region
    from sevkvm.host.qmp import Monitor

_LETTERS: Final = {1: "b", 2: "h", 4: "w", 8: "g"}
_ANSWER: Final = re.compile(r"([0-9a-f]{16}): 0x([0-9a-f]{2,16})\n")
_REFUSED: Final = re.compile(r"[0-9a-f]{16}: Cannot access memory\n")


class DeviceMonitor:
    """Devices as a monitor tells them; where they are is asked once. ``close`` hangs up."""

    def __init__(self, monitor: Monitor) -> None:
        self.monitor = monitor
        self._regions: list[Region] | None = None

    def read(self, gpa: int, nbytes: int) -> bytes:
        """``nbytes`` (1, 2, 4, 8) at ``gpa``, as one access; MemoryFault where no device answers.

        QEMU splits it where the device takes no access so wide, or none so oddly placed, as it does for the guest.
        """
        region = self._region(gpa)
        if region is None:
            raise errors.MemoryFault("gpa", gpa, reason="neither RAM nor a device is there")
        if not region.is_device:
            # the monitor would read it, but of an encrypted guest as ciphertext
            raise errors.MemoryFault(
                "gpa",
                gpa,
                reason=f"{region.shown_name} there is memory, of which the known slots do not tell",
                help="let the monitor tell the memory slots, instead of --slot",
            )
        if gpa + nbytes > region.end:
            raise errors.MemoryFault(
                "gpa", gpa, reason=f"the registers of {region.shown_name} end before that"
            )
        answer = self.monitor.hmp(f"xp /1x{_LETTERS[nbytes]} 0x{gpa:x}")
        if _REFUSED.fullmatch(answer):
            raise errors.MemoryFault("gpa", gpa, reason=f"{region.shown_name} refuses the access")
        match = _ANSWER.fullmatch(answer)
        if match is None or int(match[1], 16) != gpa or len(match[2]) != 2 * nbytes:
            raise errors.ProtocolError(f"the monitor answered `xp` with {answer[:100]!r}")
        return int(match[2], 16).to_bytes(nbytes, "little")

    def close(self) -> None:
        """Hang up."""
        self.monitor.close()

    def _region(self, gpa: int) -> Region | None:
        if self._regions is None:
            self._regions = mtree.regions(self.monitor.hmp("info mtree -f"))
        return next((region for region in self._regions if region.gpa <= gpa < region.end), None)
