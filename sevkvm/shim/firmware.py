"""The pretend secure processor: platform state, guests and their keys, commands with their status codes.

It sees system-physical addresses and data, never processes. Each command checks in the order of AMD's published
firmware (amd/AMD-ASPFW, Genoa era, sev_mcmd.c) and raises FirmwareFailure with the status. ``counts`` counts
commands as a mailbox would see them: one for each page-bounded piece of a DBG or UPDATE command.

The commands are grouped as the SEV API groups them: platform_commands, launch_commands, migration_commands,
snp_guest_commands, and here those about any guest's life.
"""

from __future__ import annotations

from sevkvm.abi.sev import BLOCK_NBYTES, FwStatus, GuestState, GuestStatus, PlatformState
from sevkvm.shim.cipher import GuestCipher
from sevkvm.shim.firmware_core import API_VERSION, BUILD, MAX_ASID, MAX_GUESTS, MIN_SEV_ASID
from sevkvm.shim.firmware_failure import FirmwareFailure, require
from sevkvm.shim.migration_commands import MigrationCommands
from sevkvm.shim.platform_commands import FLAG_ES, PlatformCommands
from sevkvm.shim.snp_guest_commands import SnpGuestCommands

__all__ = [
    "API_VERSION",
    "BUILD",
    "FLAG_ES",
    "MAX_ASID",
    "MAX_GUESTS",
    "MIN_SEV_ASID",
    "Firmware",
    "FirmwareFailure",
]


class Firmware(PlatformCommands, MigrationCommands, SnpGuestCommands):
    """One secure processor. Not thread-safe: the kernel model's lock serialises, as the mailbox does."""

    def activate(self, handle: int, asid: int) -> None:
        """ACTIVATE: load the guest's key into a slot of the memory controller."""
        self._issue("ACTIVATE")
        guest = self._working_guest(handle)
        require(1 <= asid <= MAX_ASID, FwStatus.INVALID_ASID)
        require(all(other.asid != asid for other in self.guests.values()), FwStatus.ASID_OWNED)
        require(guest.asid == 0, FwStatus.ACTIVE)
        require(guest.state != GuestState.SENT, FwStatus.INVALID_GUEST_STATE)
        require((asid < MIN_SEV_ASID) == guest.policy.es, FwStatus.INVALID_ASID)
        guest.asid = asid

    def deactivate(self, handle: int) -> None:
        """DEACTIVATE: the key leaves the memory controller."""
        self._issue("DEACTIVATE")
        guest = self._working_guest(handle)
        require(guest.asid != 0, FwStatus.INACTIVE)
        guest.asid = 0

    def decommission(self, handle: int) -> None:
        """DECOMMISSION: the guest and its key are forgotten; it must have been deactivated."""
        self._issue("DECOMMISSION")
        require(self._working_guest(handle).asid == 0, FwStatus.ACTIVE)
        del self.guests[handle]

    def guest_status(self, handle: int) -> GuestStatus:
        """GUEST_STATUS: of an unknown handle the state is 0, not an error."""
        self._issue("GUEST_STATUS")
        self._require_ready()
        guest = self.guests.get(handle)
        if guest is None:
            return GuestStatus(handle, 0, GuestState.UNINIT)
        return GuestStatus(handle, guest.policy.value, guest.state)

    def dbg(self, command: str, handle: int, src: int, dst: int, nbytes: int, count: int = 1) -> GuestCipher:
        """DBG_DECRYPT and DBG_ENCRYPT as one command, or ``count`` equal ones: the checks, then the key to use.

        ``src`` and ``dst`` are system-physical; of the side that is not encrypted only the lower bits matter.
        """
        self._issue(command, count)
        self._require_state(PlatformState.WORKING)
        require((src | dst) % BLOCK_NBYTES == 0, FwStatus.INVALID_ADDRESS)
        require(nbytes % BLOCK_NBYTES == 0, FwStatus.INVALID_LEN)
        guest = self._guest(handle)
        require(guest.policy.debug_allowed, FwStatus.POLICY_FAILURE)
        require(guest.asid != 0, FwStatus.INACTIVE)
        return guest.cipher
