"""What all commands of the pretend secure processor stand on: its state, its guests, the way a command fails.

Source: AMD publication 55766, "Secure Encrypted Virtualization API", chapters 3 and 4; AMD's published firmware
(amd/AMD-ASPFW, Genoa era) wherever the order of checks matters.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

from sevkvm.abi.sev import FwStatus, GuestState, PlatformState
from sevkvm.shim.cipher import HostTweak
from sevkvm.shim.faults import Faults
from sevkvm.shim.firmware_failure import FirmwareFailure, require
from sevkvm.shim.guest_context import GuestContext
from sevkvm.shim.platform_keys import PlatformKeys

API_VERSION: Final = (1, 55)
BUILD: Final = 21
MAX_GUESTS: Final = 1024  # handles are 1..1024
MAX_ASID: Final = 509
MIN_SEV_ASID: Final = 100  # ASIDs below belong to SEV-ES guests, as CPUID 8000001F EDX says
SCRATCH_NBYTES: Final = 0x5000  # the longest packet: what the processor holds of its own memory


class FirmwareCore:
    """State of one secure processor. Not thread-safe: the kernel model's lock serialises, as the mailbox does."""

    def __init__(self, tweak: HostTweak | None = None, keys: PlatformKeys | None = None) -> None:
        self.tweak = HostTweak() if tweak is None else tweak
        self.keys = PlatformKeys(API_VERSION) if keys is None else keys
        self.guests: dict[int, GuestContext] = {}
        self.snp_guests: dict[int, Any] = {}  # by context; see snp_guest_commands.py
        self.counts: Counter[str] = Counter()
        self.faults = Faults()
        self.initialised = True  # the driver initialises the platform when it loads
        self.es_enabled = True  # what the driver asks for in INIT

    @property
    def state(self) -> PlatformState:
        """UNINIT, INIT, or WORKING while there is a guest."""
        if not self.initialised:
            return PlatformState.UNINIT
        return PlatformState.WORKING if self.guests else PlatformState.INIT

    def _issue(self, command: str, count: int = 1) -> None:
        # the one place where every command passes
        try:
            self.faults.command(command, count)
        except FirmwareFailure:
            self.counts[command] += count
            raise
        self.counts[command] += count

    def _require_state(self, *allowed: PlatformState) -> None:
        require(self.state in allowed, FwStatus.INVALID_PLATFORM_STATE)

    def _require_ready(self) -> None:
        self._require_state(PlatformState.INIT, PlatformState.WORKING)

    def _guest(self, handle: int) -> GuestContext:
        guest = self.guests.get(handle)
        if guest is None:
            raise FirmwareFailure(FwStatus.INVALID_GUEST)
        return guest

    def _working_guest(self, handle: int, *states: GuestState) -> GuestContext:
        """The first three checks of nearly every guest command."""
        self._require_state(PlatformState.WORKING)
        guest = self._guest(handle)
        require(not states or guest.state in states, FwStatus.INVALID_GUEST_STATE)
        return guest
