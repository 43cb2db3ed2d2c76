"""The identity of a pretend processor: CEK from the chip, and OCA, PEK and PDH, which the platform makes itself.

    CEK (signed by AMD) --+
                          +--> PEK --> PDH, which guest owners agree keys with
    OCA (signs itself) ---+

Source: AMD publication 55766, chapter 2 "Platform identity" and the platform commands of chapter 5. The PEK's own
key signs; the CEK goes out without a signature, as AMD's published firmware exports it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from sevkvm.abi.sev import FwStatus
from sevkvm.shim.amd_root import AmdRoot
from sevkvm.shim.cert_check import validate
from sevkvm.shim.certs import Algo, Certificate, KeyPair, Usage

_CHIP: Final = b"sevkvm pretend processor"
CHIP_ID_NBYTES: Final = 64


@dataclass(frozen=True)
class _Identity:
    """What survives a reboot. ``owned``: by somebody else than the platform itself."""

    pek: KeyPair
    pek_cert: Certificate
    oca_cert: Certificate
    pdh: KeyPair
    pdh_cert: Certificate
    owned: bool = False


class PlatformKeys:
    """Keys and certificates of one platform; made when they are first needed. ``chip`` names the processor."""

    def __init__(self, api: tuple[int, int], chip: bytes = _CHIP, sockets: int = 1) -> None:
        self._api = api
        self._chip = chip
        self._sockets = sockets
        self._stored: _Identity | None = None
        self.amd = AmdRoot()

    @cached_property
    def chip_ids(self) -> tuple[bytes, ...]:
        """A 64-byte id for each socket: the public half of a secp256k1 key, x then y, big-endian."""
        secrets = (self._secret(f"id {socket}", 31) for socket in range(self._sockets))
        keys = (ec.derive_private_key(secret, ec.SECP256K1()).public_key() for secret in secrets)
        form = Encoding.X962, PublicFormat.UncompressedPoint
        return tuple(key.public_bytes(*form)[1:] for key in keys)

    @cached_property
    def _cek(self) -> KeyPair:
        key = ec.derive_private_key(self._secret("cek", 47), ec.SECP384R1())
        return KeyPair(Usage.CEK, Algo.ECDSA_SHA256, key)

    def _secret(self, label: str, nbytes: int) -> int:
        return 1 + int.from_bytes(hashlib.sha512(self._chip + label.encode()).digest()[:nbytes], "big")

    @property
    def _identity(self) -> _Identity:
        if self._stored is None:
            self.pek_gen()
        assert self._stored
        return self._stored

    @property
    def owned(self) -> bool:
        """PEK_CERT_IMPORT has given the platform an owner."""
        return self._stored is not None and self._stored.owned

    @property
    def pdh(self) -> KeyPair:
        """The Diffie-Hellman key."""
        return self._identity.pdh

    @property
    def pek(self) -> KeyPair:
        """The endorsement key."""
        return self._identity.pek

    @property
    def cek_cert(self) -> Certificate:
        """The chip's certificate, unsigned."""
        return Certificate.of(self._cek, self._api)

    @property
    def signed_cek_cert(self) -> Certificate:
        """The chip's certificate as AMD's key server hands it out."""
        return self.amd.sign_cek(self.cek_cert)

    def pek_gen(self) -> None:
        """PEK_GEN: everything anew, and the platform is its own owner again."""
        oca, pek = KeyPair.generate(Usage.OCA), KeyPair.generate(Usage.PEK)
        oca_cert = Certificate.of(oca, self._api).signed_by(oca)
        pek_cert = Certificate.of(pek, self._api).signed_by(oca).signed_by(self._cek)
        pdh, pdh_cert = self._new_pdh(pek)
        self._stored = _Identity(pek, pek_cert, oca_cert, pdh, pdh_cert)

    def pdh_gen(self) -> None:
        """PDH_GEN: a new PDH under the same PEK."""
        pdh, pdh_cert = self._new_pdh(self.pek)
        self._stored = replace(self._identity, pdh=pdh, pdh_cert=pdh_cert)

    def _new_pdh(self, pek: KeyPair) -> tuple[KeyPair, Certificate]:
        pdh = KeyPair.generate(Usage.PDH, Algo.ECDH_SHA256)
        return pdh, Certificate.of(pdh, self._api).signed_by(pek)

    def reset(self) -> None:
        """FACTORY_RESET: what was stored is gone; the next use makes it anew."""
        self._stored = None

    def pek_csr(self) -> bytes:
        """The PEK's certificate without signatures, for an owner to sign."""
        return Certificate(self._identity.pek_cert.body).pack()

    def pdh_export(self) -> tuple[bytes, bytes]:
        """The PDH's certificate, and PEK, OCA and CEK in a row."""
        identity = self._identity
        chain = (identity.pek_cert, identity.oca_cert, self.cek_cert)
        return identity.pdh_cert.pack(), b"".join(cert.pack() for cert in chain)

    def pek_cert_import(self, pek_cert: Certificate, oca_cert: Certificate) -> FwStatus:
        """PEK_CERT_IMPORT: an owner's signature replaces our own OCA's."""
        for cert in (oca_cert, pek_cert):
            status = validate(cert, oca_cert)
            if status != FwStatus.SUCCESS:
                return status
        ours = self._identity
        from_chip = ours.pek_cert.block_of(Usage.CEK)
        if pek_cert.body != ours.pek_cert.body or from_chip is None:
            return FwStatus.INVALID_CERTIFICATE
        try:
            pek_cert = pek_cert.with_block(from_chip)
        except ValueError:
            return FwStatus.INVALID_CERTIFICATE
        self._stored = replace(ours, pek_cert=pek_cert, oca_cert=oca_cert, owned=True)
        self.pdh_gen()
        return FwStatus.SUCCESS
