"""The pretend secure processor: platform state, guests and their keys, commands with their status codes.

It sees system-physical addresses and data, never processes. Each command checks in the order of AMD's published
firmware (amd/AMD-ASPFW, Genoa era, sev_mcmd.c) and raises FirmwareFailure with the status. ``counts`` counts
commands as a mailbox would see them: one for each page-bounded piece of a DBG or UPDATE command.

Limits: no sessions (a guest owner's certificate is answered UNSUPPORTED), no LAUNCH_SECRET, no migration; a
LAUNCH_START without a session gets a random transport key, which is what the SEV API does too.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import Final

from sevkvm.abi.sev import (
    BLOCK_NBYTES,
    POLICY_NOKS,
    FwStatus,
    GuestState,
    GuestStatus,
    PlatformState,
    PlatformStatus,
    Policy,
)
from sevkvm.shim.cipher import GuestCipher, HostTweak
from sevkvm.shim.guest_context import MEASUREMENT_NBYTES, GuestContext

API_VERSION: Final = (1, 55)
BUILD: Final = 21
MAX_GUESTS: Final = 1024  # handles are 1..1024
MAX_ASID: Final = 509
MIN_SEV_ASID: Final = 100  # ASIDs below belong to SEV-ES guests, as CPUID 8000001F EDX says
FLAG_ES: Final = 0x100
DH_CERT_NBYTES: Final = 2084
SESSION_NBYTES: Final = 128
CHAIN_NBYTES: Final = 3 * DH_CERT_NBYTES  # PEK, OCA, CEK
CERT_VERSION: Final = 1
IDS_NBYTES: Final = 128


class FirmwareFailure(Exception):
    """A command ended with ``status``; ``nbytes`` is a length that the firmware filled in, where it does."""

    def __init__(self, status: FwStatus, nbytes: int | None = None) -> None:
        super().__init__(status.name)
        self.status = status
        self.nbytes = nbytes


def _require(condition: bool, status: FwStatus) -> None:
    if not condition:
        raise FirmwareFailure(status)


class Firmware:
    """One secure processor. Not thread-safe: the kernel model's lock serialises, as the mailbox does."""

    def __init__(self, tweak: HostTweak | None = None) -> None:
        self.tweak = HostTweak() if tweak is None else tweak
        self.guests: dict[int, GuestContext] = {}
        self.counts: Counter[str] = Counter()
        self._id = hashlib.sha512(b"sevkvm pretend processor").digest()
        self.initialised = True  # the driver initialises the platform when it loads
        self.es_enabled = True

    @property
    def state(self) -> PlatformState:
        """UNINIT, INIT, or WORKING while there is a guest."""
        if not self.initialised:
            return PlatformState.UNINIT
        return PlatformState.WORKING if self.guests else PlatformState.INIT

    def _issue(self, command: str, count: int = 1) -> None:
        # the one place where every command passes: delays and injected failures belong here
        self.counts[command] += count

    def _guest(self, handle: int) -> GuestContext:
        guest = self.guests.get(handle)
        if guest is None:
            raise FirmwareFailure(FwStatus.INVALID_GUEST)
        return guest

    def _ready(self, *, working: bool = False) -> None:
        allowed = (PlatformState.WORKING,) if working else (PlatformState.INIT, PlatformState.WORKING)
        _require(self.state in allowed, FwStatus.INVALID_PLATFORM_STATE)

    def platform_status(self) -> PlatformStatus:
        """PLATFORM_STATUS: allowed in every state."""
        self._issue("PLATFORM_STATUS")
        flags = FLAG_ES if self.initialised and self.es_enabled else 0
        return PlatformStatus(*API_VERSION, self.state, flags, BUILD, len(self.guests))

    def get_id(self, room: int) -> bytes:
        """GET_ID: the ids of two sockets, of which there is one."""
        self._issue("GET_ID")
        if room < IDS_NBYTES:
            raise FirmwareFailure(FwStatus.INVALID_LEN, IDS_NBYTES)
        return self._id + bytes(IDS_NBYTES - len(self._id))

    def pdh_cert_export(self, room: int, chain_room: int) -> tuple[bytes, bytes]:
        """PDH_CERT_EXPORT: (PDH, chain), of the right size and version, without keys; they certify nothing."""
        self._issue("PDH_CERT_EXPORT")
        self._ready()
        _require(room >= DH_CERT_NBYTES and chain_room >= CHAIN_NBYTES, FwStatus.INVALID_LEN)
        certificate = CERT_VERSION.to_bytes(4, "little").ljust(DH_CERT_NBYTES, b"\0")
        return certificate, certificate * 3

    def launch_start(self, handle: int, policy: int, dh_nbytes: int = 0, session_nbytes: int = 0) -> int:
        """LAUNCH_START: a new guest, or one that shares the key of guest ``handle``; returns its handle."""
        self._issue("LAUNCH_START")
        self._ready()
        shared: GuestContext | None = None
        if handle:
            shared = self._guest(handle)
            _require(
                shared.policy.value == policy and not policy & POLICY_NOKS,
                FwStatus.POLICY_FAILURE,
            )
        _require(self.es_enabled or not Policy(policy).es, FwStatus.UNSUPPORTED)
        if dh_nbytes or session_nbytes:
            _require((dh_nbytes, session_nbytes) == (DH_CERT_NBYTES, SESSION_NBYTES), FwStatus.INVALID_LEN)
            raise FirmwareFailure(FwStatus.UNSUPPORTED)
        new = next((h for h in range(1, MAX_GUESTS + 1) if h not in self.guests), 0)
        _require(new != 0, FwStatus.RESOURCE_LIMIT)
        cipher = shared.cipher if shared else GuestCipher(self.tweak)
        self.guests[new] = GuestContext(new, Policy(policy), cipher)
        return new

    def activate(self, handle: int, asid: int) -> None:
        """ACTIVATE: load the guest's key into a slot of the memory controller."""
        self._issue("ACTIVATE")
        self._ready()
        guest = self._guest(handle)
        _require(guest.asid == 0, FwStatus.ACTIVE)
        in_range = 1 <= asid < MIN_SEV_ASID if guest.policy.es else MIN_SEV_ASID <= asid <= MAX_ASID
        _require(in_range, FwStatus.INVALID_ASID)
        _require(all(other.asid != asid for other in self.guests.values()), FwStatus.ASID_OWNED)
        guest.asid = asid

    def deactivate(self, handle: int) -> None:
        """DEACTIVATE: the key leaves the memory controller."""
        self._issue("DEACTIVATE")
        self._guest(handle).asid = 0

    def decommission(self, handle: int) -> None:
        """DECOMMISSION: the guest and its key are forgotten."""
        self._issue("DECOMMISSION")
        self._guest(handle)
        del self.guests[handle]

    def _launching(self, handle: int, state: GuestState) -> GuestContext:
        self._ready(working=True)
        guest = self._guest(handle)
        _require(guest.state == state, FwStatus.INVALID_GUEST_STATE)
        return guest

    def launch_update(self, command: str, handle: int, spa: int, nbytes: int) -> GuestContext:
        """LAUNCH_UPDATE_DATA and _VMSA: the checks, then the guest that is to seal the data at ``spa``."""
        self._issue(command)
        guest = self._launching(handle, GuestState.LAUNCH_UPDATE)
        _require(guest.asid != 0, FwStatus.INACTIVE)
        _require(spa % BLOCK_NBYTES == 0, FwStatus.INVALID_ADDRESS)
        _require(nbytes > 0 and nbytes % BLOCK_NBYTES == 0, FwStatus.INVALID_LEN)
        return guest

    def launch_measure(self, handle: int, nbytes: int) -> bytes:
        """LAUNCH_MEASURE: the measurement; a short buffer fails with the length it wants."""
        self._issue("LAUNCH_MEASURE")
        guest = self._launching(handle, GuestState.LAUNCH_UPDATE)
        if nbytes < MEASUREMENT_NBYTES:
            raise FirmwareFailure(FwStatus.INVALID_LEN, MEASUREMENT_NBYTES)
        guest.state = GuestState.LAUNCH_SECRET
        return guest.measure(API_VERSION, BUILD)

    def launch_finish(self, handle: int) -> None:
        """LAUNCH_FINISH: the guest may run."""
        self._issue("LAUNCH_FINISH")
        self._launching(handle, GuestState.LAUNCH_SECRET).state = GuestState.RUNNING

    def guest_status(self, handle: int) -> GuestStatus:
        """GUEST_STATUS: of an unknown handle the state is 0, not an error."""
        self._issue("GUEST_STATUS")
        self._ready()
        guest = self.guests.get(handle)
        if guest is None:
            return GuestStatus(handle, 0, GuestState.UNINIT)
        return GuestStatus(handle, guest.policy.value, guest.state)

    def dbg(self, command: str, handle: int, src: int, dst: int, nbytes: int, count: int = 1) -> GuestCipher:
        """DBG_DECRYPT and DBG_ENCRYPT as one command, or ``count`` equal ones: the checks, then the key to use.

        ``src`` and ``dst`` are system-physical; of the side that is not encrypted only the lower bits matter.
        """
        self._issue(command, count)
        self._ready(working=True)
        _require((src | dst) % BLOCK_NBYTES == 0, FwStatus.INVALID_ADDRESS)
        _require(nbytes % BLOCK_NBYTES == 0, FwStatus.INVALID_LEN)
        guest = self._guest(handle)
        _require(guest.policy.debug_allowed, FwStatus.POLICY_FAILURE)
        _require(guest.asid != 0, FwStatus.INACTIVE)
        return guest.cipher

    def unsupported(self, command: str) -> None:
        """A command that this model does not know: the firmware says UNSUPPORTED."""
        self._issue(command)
        raise FirmwareFailure(FwStatus.UNSUPPORTED)
