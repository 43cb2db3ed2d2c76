"""Commands that launch a guest (AMD publication 55766, chapter 6)."""

from __future__ import annotations

import struct
from typing import Final

from sevkvm.abi.policy import Policy
from sevkvm.abi.policybits import POLICY_NOKS
from sevkvm.abi.sev import BLOCK_NBYTES, FwStatus, GuestState
from sevkvm.shim.certs import CERT_NBYTES
from sevkvm.shim.channel import HEADER_NBYTES, SESSION_NBYTES, Channel, open_channel, open_secret
from sevkvm.shim.cipher import GuestCipher
from sevkvm.shim.firmware_core import API_VERSION, BUILD, MAX_GUESTS, SCRATCH_NBYTES, FirmwareCore
from sevkvm.shim.firmware_failure import FirmwareFailure, require
from sevkvm.shim.guest_context import MEASUREMENT_NBYTES, GuestContext

VMSA_NBYTES: Final = 4096
_REPORT: Final = struct.Struct("<16s32sI")  # what is signed: nonce, digest, policy
_REPORT_TAIL: Final = struct.Struct("<II4x144s")  # signer's usage and algorithm, signature
REPORT_NBYTES: Final = _REPORT.size + _REPORT_TAIL.size
_REPORTED_STATES: Final = (
    GuestState.LAUNCH_SECRET,
    GuestState.RUNNING,
    GuestState.SEND_UPDATE,
    GuestState.SENT,
)


class LaunchCommands(FirmwareCore):
    """Each checks in the firmware's order and raises FirmwareFailure with the status."""

    def launch_start(self, handle: int, policy: int, owner: bytes | None = None, session: bytes = b"") -> int:
        """LAUNCH_START: a new guest, or one that shares the key of guest ``handle``; returns its handle.

        ``owner`` is the owner's Diffie-Hellman certificate; without one a session is not looked at.
        """
        self._issue("LAUNCH_START")
        self._require_ready()
        channel = Channel() if owner is None else self._channel(owner, session, policy)
        cipher = self._key(handle, policy)
        new = self._free_handle(policy)
        self.guests[new] = GuestContext(new, Policy(policy), cipher, channel)
        return new

    def _channel(self, owner: bytes, session: bytes, policy: int) -> Channel:
        require(len(session) == SESSION_NBYTES, FwStatus.INVALID_LEN)
        require(len(owner) == CERT_NBYTES, FwStatus.INVALID_LEN)
        return open_channel(self.keys.pdh, owner, session, policy, API_VERSION)

    def _key(self, shared_with: int, policy: int) -> GuestCipher:
        if not shared_with:
            return GuestCipher(self.tweak)
        shared = self._guest(shared_with)
        same = shared.policy.value == policy and not policy & POLICY_NOKS
        require(same, FwStatus.POLICY_FAILURE)
        return shared.cipher

    def _free_handle(self, policy: int) -> int:
        new = next((h for h in range(1, MAX_GUESTS + 1) if h not in self.guests), 0)
        require(new != 0, FwStatus.RESOURCE_LIMIT)
        require(self.es_enabled or not Policy(policy).es, FwStatus.UNSUPPORTED)
        return new

    def launch_update(self, command: str, handle: int, spa: int, nbytes: int) -> GuestContext:
        """LAUNCH_UPDATE_DATA and _VMSA: the checks, then the guest that is to seal the data at ``spa``."""
        self._issue(command)
        vmsa = command == "LAUNCH_UPDATE_VMSA"
        require(nbytes == VMSA_NBYTES or not vmsa, FwStatus.INVALID_LEN)
        guest = self._working_guest(handle, GuestState.LAUNCH_UPDATE)
        require(guest.policy.es or not vmsa, FwStatus.UNSUPPORTED)
        require(guest.asid != 0, FwStatus.INACTIVE)
        require(spa % BLOCK_NBYTES == 0, FwStatus.INVALID_ADDRESS)
        require(nbytes > 0 and nbytes % BLOCK_NBYTES == 0, FwStatus.INVALID_LEN)
        return guest

    def launch_measure(self, handle: int, nbytes: int) -> bytes:
        """LAUNCH_MEASURE: the measurement; a short buffer fails with the length it wants."""
        self._issue("LAUNCH_MEASURE")
        guest = self._working_guest(handle, GuestState.LAUNCH_UPDATE)
        if nbytes < MEASUREMENT_NBYTES:
            raise FirmwareFailure(FwStatus.INVALID_LEN, MEASUREMENT_NBYTES)
        guest.state = GuestState.LAUNCH_SECRET
        return guest.measure(API_VERSION, BUILD)

    def launch_secret(self, handle: int, header: bytes, spa: int, nbytes: int, packet: bytes) -> bytearray:
        """LAUNCH_SECRET: the ciphertext that puts the owner's secret into the guest's ``nbytes`` at ``spa``."""
        self._issue("LAUNCH_SECRET")
        self._working_guest(handle)
        require(spa % BLOCK_NBYTES == 0, FwStatus.INVALID_ADDRESS)
        good = len(header) == HEADER_NBYTES and nbytes % BLOCK_NBYTES == 0
        good = good and 0 < nbytes <= SCRATCH_NBYTES and nbytes == len(packet)
        require(good, FwStatus.INVALID_LEN)
        guest = self._working_guest(handle, GuestState.LAUNCH_SECRET)
        require(guest.asid != 0, FwStatus.INACTIVE)
        return guest.cipher.encrypt(spa, open_secret(guest.channel, header, packet, guest.measured))

    def launch_finish(self, handle: int) -> None:
        """LAUNCH_FINISH: the guest may run."""
        self._issue("LAUNCH_FINISH")
        self._working_guest(handle, GuestState.LAUNCH_SECRET).finish_launch()

    def attestation(self, handle: int, nonce: bytes, nbytes: int) -> bytes:
        """ATTESTATION: the launch digest and policy, signed by the PEK."""
        self._issue("ATTESTATION")
        guest = self._working_guest(handle, *_REPORTED_STATES)
        if nbytes < REPORT_NBYTES:
            raise FirmwareFailure(FwStatus.INVALID_LEN, REPORT_NBYTES)
        signed = _REPORT.pack(nonce, guest.launch_digest, guest.policy.value)
        pek = self.keys.pek
        return signed + _REPORT_TAIL.pack(pek.usage, pek.algo, pek.sign(signed))
