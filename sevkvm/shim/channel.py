"""The trusted channel between a guest's owner and the processor: key agreement, session, packets.

Source: AMD publication 55766, chapter 2 "Transport keys" and the launch commands; the order of checks is that of
AMD's published firmware (sev_channel.c). HMACs are HMAC-SHA256, keys AES-128, derivation NIST SP 800-108 in
counter mode with 32-bit little-endian counter and length.
"""

from __future__ import annotations

import hmac
import struct
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from sevkvm.abi.sev import FwStatus
from sevkvm.shim.cert_check import public_key
from sevkvm.shim.certs import VERSION, Algo, Certificate, KeyPair, Usage
from sevkvm.shim.firmware_failure import FirmwareFailure, require

KEY_NBYTES: Final = 16
_NONCE_NBYTES: Final = 16
_IV_NBYTES: Final = 16
_MAC_NBYTES: Final = 32
_SESSION: Final = struct.Struct(f"{_NONCE_NBYTES}s{2 * KEY_NBYTES}s{_IV_NBYTES}s{_MAC_NBYTES}s{_MAC_NBYTES}s")
_HEADER: Final = struct.Struct(f"<I{_IV_NBYTES}s{_MAC_NBYTES}s")
SESSION_NBYTES: Final = _SESSION.size
HEADER_NBYTES: Final = _HEADER.size
_FLAG_COMPRESSED: Final = 1
_SECRET_CONTEXT: Final = b"\x01"


@dataclass(frozen=True)
class Channel:
    """Transport encryption and integrity keys; all zeros where the owner brought no session.

    That is what AMD's published firmware does: anybody can check the measurement of such a guest.
    """

    tek: bytes = bytes(KEY_NBYTES)
    tik: bytes = bytes(KEY_NBYTES)

    def mac(self, message: bytes) -> bytes:
        """HMAC under the integrity key."""
        return hmac.digest(self.tik, message, "sha256")


def derive(key: bytes, label: bytes, context: bytes = b"") -> bytes:
    """A 16-byte key from a key."""
    length = struct.pack("<I", 8 * KEY_NBYTES)
    return hmac.digest(key, struct.pack("<I", 1) + label + b"\0" + context + length, "sha256")[:KEY_NBYTES]


def open_channel(pdh: KeyPair, owner: bytes, session: bytes, policy: int, api: tuple[int, int]) -> Channel:
    """The channel that an owner's certificate and session ask for, once the policy is known to be the owner's.

    INVALID_CERTIFICATE, BAD_MEASUREMENT for a MAC that is wrong, POLICY_FAILURE for one that wants a newer API
    than ``api`` or sets reserved bits.
    """
    nonce, wrapped, iv, wrap_mac, policy_mac = _SESSION.unpack(session)
    secret = _shared_secret(pdh, Certificate.unpack(owner))
    master = derive(secret, b"sev-master-secret", nonce)
    _verify(hmac.digest(derive(master, b"sev-kik"), wrapped, "sha256"), wrap_mac)
    keys = _ctr(derive(master, b"sev-kek"), iv, wrapped)
    channel = Channel(keys[:KEY_NBYTES], keys[KEY_NBYTES:])
    _verify(channel.mac(policy.to_bytes(4, "little")), policy_mac)
    wanted = policy >> 16 & 0xFF, policy >> 24
    require(wanted <= api and not policy & 0xFFC0, FwStatus.POLICY_FAILURE)
    return channel


def _shared_secret(pdh: KeyPair, owner: Certificate) -> bytes:
    key = public_key(owner)
    plausible = owner.version == VERSION and (owner.usage, owner.algo) == (Usage.PDH, Algo.ECDH_SHA256)
    if not plausible or not isinstance(key, ec.EllipticCurvePublicKey):
        raise FirmwareFailure(FwStatus.INVALID_CERTIFICATE)
    return pdh.private.exchange(ec.ECDH(), key)


def open_secret(channel: Channel, header: bytes, data: bytes, measurement: bytes) -> bytes:
    """The plaintext of a LAUNCH_SECRET packet; BAD_MEASUREMENT if it is not the owner's, UNSUPPORTED compressed."""
    flags, iv, mac = _HEADER.unpack(header)
    message = struct.pack(f"<I{_IV_NBYTES}sII", flags, iv, len(data), len(data)) + data + measurement
    _verify(channel.mac(_SECRET_CONTEXT + message), mac)
    require(not flags & _FLAG_COMPRESSED, FwStatus.UNSUPPORTED)
    return _ctr(channel.tek, iv, data)


def _verify(mac: bytes, claimed: bytes) -> None:
    require(hmac.compare_digest(mac, claimed), FwStatus.BAD_MEASUREMENT)


def _ctr(key: bytes, iv: bytes, data: bytes) -> bytes:
    """AES-CTR, either way."""
    context = Cipher(algorithms.AES(key), modes.CTR(iv)).encryptor()
    return context.update(data) + context.finalize()
