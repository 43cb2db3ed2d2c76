"""One guest as the firmware keeps it: key, policy, state, launch digest (SEV API, chapter 4: GCTX)."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from typing import Any, Final

from sevkvm.abi.policy import Policy
from sevkvm.abi.sev import GuestState
from sevkvm.shim.channel import Channel
from sevkvm.shim.cipher import GuestCipher

NONCE_NBYTES: Final = 16
_HMAC_NBYTES: Final = 32
MEASUREMENT_NBYTES: Final = _HMAC_NBYTES + NONCE_NBYTES
_MEASURE_CONTEXT: Final = b"\x04"


def measurement(
    channel: Channel, api: tuple[int, int], build: int, policy: int, digest: bytes, nonce: bytes
) -> bytes:
    """The launch measurement: a MAC under the transport integrity key, then the nonce (48 bytes).

    Source: AMD publication 55766, LAUNCH_MEASURE: 0x04, API major, API minor, build, policy, digest, nonce.
    """
    message = _MEASURE_CONTEXT + bytes((*api, build)) + policy.to_bytes(4, "little") + digest + nonce
    return channel.mac(message) + nonce


@dataclass
class GuestContext:
    """A guest that LAUNCH_START made. ``asid`` is 0 until ACTIVATE.

    ``launch_digest`` is that of everything launched, zeros until LAUNCH_MEASURE, ``measured`` the MAC it gave out.
    """

    handle: int
    policy: Policy
    cipher: GuestCipher
    channel: Channel = field(default_factory=Channel)
    state: GuestState = GuestState.LAUNCH_UPDATE
    asid: int = 0
    launch_digest: bytes = bytes(32)
    measured: bytes = b""
    _digest: Any = field(default_factory=hashlib.sha256)

    def seal(self, spa: int, data: bytearray | memoryview) -> None:
        """Take launched plaintext at ``spa`` into the digest, and make it ciphertext in place."""
        self._digest.update(data)
        self.cipher.encrypt_into(spa, data, data)

    def measure(self, api: tuple[int, int], build: int) -> bytes:
        """The measurement of all that was launched, with a fresh nonce."""
        self.launch_digest = self._digest.digest()
        blob = measurement(
            self.channel, api, build, self.policy.value, self.launch_digest, os.urandom(NONCE_NBYTES)
        )
        self.measured = blob[:_HMAC_NBYTES]
        return blob

    def finish_launch(self) -> None:
        """The channel to the owner is closed and the guest may run."""
        self.channel, self.measured = Channel(), b""
        self.state = GuestState.RUNNING
