"""The firmware's side of launching a SEV-SNP guest, as far as its states (AMD publication 56860, chapter 8).

No memory is encrypted: SNP guests keep theirs in guest_memfd, which no process maps, so nobody could tell.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

from sevkvm.abi.sev import FwStatus
from sevkvm.shim.firmware_core import FirmwareCore
from sevkvm.shim.firmware_failure import FirmwareFailure, require


@dataclass
class SnpGuest:
    """A guest context page. ``policy`` is None until LAUNCH_START; ``asid`` 0 until ACTIVATE."""

    policy: int | None = None
    asid: int = 0
    running: bool = False
    digest: Any = field(default_factory=hashlib.sha384)

    def require_launching(self) -> None:
        """INVALID_GUEST_STATE before LAUNCH_START and after LAUNCH_FINISH."""
        require(self.policy is not None and not self.running, FwStatus.INVALID_GUEST_STATE)


class SnpGuestCommands(FirmwareCore):
    """Contexts are known by a number that stands for the address of their page."""

    def _snp_guest(self, context: int) -> SnpGuest:
        guest = self.snp_guests.get(context)
        if not isinstance(guest, SnpGuest):
            raise FirmwareFailure(FwStatus.INVALID_GUEST)
        return guest

    def snp_gctx_create(self) -> int:
        """SNP_GCTX_CREATE: a new context."""
        self._issue("SNP_GCTX_CREATE")
        context = max(self.snp_guests, default=0) + 1
        self.snp_guests[context] = SnpGuest()
        return context

    def snp_launch_start(self, context: int, policy: int) -> None:
        """SNP_LAUNCH_START: once for a context."""
        self._issue("SNP_LAUNCH_START")
        guest = self._snp_guest(context)
        require(guest.policy is None, FwStatus.INVALID_GUEST_STATE)
        guest.policy = policy

    def snp_activate(self, context: int, asid: int) -> None:
        """SNP_ACTIVATE."""
        self._issue("SNP_ACTIVATE")
        guest = self._snp_guest(context)
        require(all(other.asid != asid for other in self.snp_guests.values()), FwStatus.ASID_OWNED)
        guest.asid = asid

    def snp_launch_update(self, context: int, page_type: int, gfn: int, page: bytes) -> None:
        """SNP_LAUNCH_UPDATE: one page is measured."""
        self._issue("SNP_LAUNCH_UPDATE")
        guest = self._snp_guest(context)
        guest.require_launching()
        guest.digest.update(bytes((page_type,)) + gfn.to_bytes(8, "little") + page)

    def snp_launch_finish(self, context: int) -> None:
        """SNP_LAUNCH_FINISH: the guest may run."""
        self._issue("SNP_LAUNCH_FINISH")
        guest = self._snp_guest(context)
        guest.require_launching()
        guest.running = True

    def snp_decommission(self, context: int) -> None:
        """SNP_DECOMMISSION: the guest is forgotten."""
        self._issue("SNP_DECOMMISSION")
        self._snp_guest(context)
        del self.snp_guests[context]
