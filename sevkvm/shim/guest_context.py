"""One guest as the firmware keeps it: key, policy, state, launch digest (SEV API, chapter 4: GCTX)."""

from __future__ import annotations

import hashlib
import hmac
import os
from dataclasses import dataclass, field
from typing import Any, Final

from sevkvm.abi.sev import GuestState, Policy
from sevkvm.shim.cipher import GuestCipher

NONCE_NBYTES: Final = 16
MEASUREMENT_NBYTES: Final = 32 + NONCE_NBYTES
_MEASURE_CONTEXT: Final = b"\x04"


def measurement(
    tik: bytes, api: tuple[int, int], build: int, policy: int, digest: bytes, nonce: bytes
) -> bytes:
    """The launch measurement: HMAC-SHA256 under the transport integrity key, then the nonce (48 bytes).

    Source: AMD publication 55766, LAUNCH_MEASURE: 0x04, API major, API minor, build, policy, digest, nonce.
    """
    message = _MEASURE_CONTEXT + bytes((*api, build)) + policy.to_bytes(4, "little") + digest + nonce
    return hmac.digest(tik, message, "sha256") + nonce


@dataclass
class GuestContext:
    """A guest that LAUNCH_START made. ``asid`` is 0 until ACTIVATE."""

    handle: int
    policy: Policy
    cipher: GuestCipher
    state: GuestState = GuestState.LAUNCH_UPDATE
    asid: int = 0
    tik: bytes = field(default_factory=lambda: os.urandom(16))
    digest: Any = field(default_factory=hashlib.sha256)

    def seal(self, spa: int, data: bytearray | memoryview) -> None:
        """Take launched plaintext at ``spa`` into the digest, and make it ciphertext in place."""
        self.digest.update(data)
        self.cipher.encrypt_into(spa, data, data)

    def measure(self, api: tuple[int, int], build: int) -> bytes:
        """The measurement of what was launched so far, with a fresh nonce."""
        nonce = os.urandom(NONCE_NBYTES)
        return measurement(self.tik, api, build, self.policy.value, self.digest.digest(), nonce)
