"""AMD's part of the certificate chain, made up: ARK, ASK, and the signature that the CEK gets from them.

A real platform exports its CEK without a signature; the owner fetches the signed one, with the ASK and ARK, from
AMD's key server by the processor's id. ``AmdRoot`` is that server.
Source: AMD publication 55766, appendix "AMD signing key certificate format"; RSA-2048 and SHA-256 as on Naples.
"""

from __future__ import annotations

import os
import struct
from functools import cached_property
from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from sevkvm.shim.certs import Algo, Certificate, Usage

_HEAD: Final = struct.Struct("<I16s16sI16xII")
_VERSION: Final = 1
_KEY_BITS: Final = 2048
_EXPONENT: Final = 65537
_ID_NBYTES: Final = 16


class AmdRoot:
    """Keys are made when somebody first asks."""

    @cached_property
    def _ark(self) -> tuple[bytes, rsa.RSAPrivateKey]:
        return os.urandom(_ID_NBYTES), rsa.generate_private_key(_EXPONENT, _KEY_BITS)

    @cached_property
    def _ask(self) -> tuple[bytes, rsa.RSAPrivateKey]:
        return os.urandom(_ID_NBYTES), rsa.generate_private_key(_EXPONENT, _KEY_BITS)

    @cached_property
    def chain(self) -> bytes:
        """The ASK's certificate, then the ARK's (832 bytes each)."""
        ark_id, ark = self._ark
        ask_id, ask = self._ask
        return _certificate(ask_id, ask, Usage.ASK, ark_id, ark) + _certificate(
            ark_id, ark, Usage.ARK, ark_id, ark
        )

    def sign_cek(self, cek: Certificate) -> Certificate:
        """The CEK's certificate with the ASK's signature."""
        return cek.signed(_sign(self._ask[1], cek.body), Usage.ASK, Algo.RSA_SHA256)


def _sign(key: rsa.RSAPrivateKey, message: bytes) -> bytes:
    pss = padding.PSS(padding.MGF1(hashes.SHA256()), hashes.SHA256.digest_size)
    return key.sign(message, pss, hashes.SHA256())[::-1]


def _certificate(
    key_id: bytes, key: rsa.RSAPrivateKey, usage: Usage, signer_id: bytes, signer: rsa.RSAPrivateKey
) -> bytes:
    numbers = key.public_key().public_numbers()
    body = _HEAD.pack(_VERSION, key_id, signer_id, usage, _KEY_BITS, _KEY_BITS)
    body += b"".join(number.to_bytes(_KEY_BITS // 8, "little") for number in (numbers.e, numbers.n))
    return body + _sign(signer, body)
