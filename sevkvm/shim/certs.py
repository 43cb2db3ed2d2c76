"""SEV certificates: the 2,084-byte format of PDH, PEK, OCA and CEK.

    body (1,044 bytes, what is signed): version, API major and minor, key usage, key algorithm, public key
    twice: signer's usage and algorithm, signature (512 bytes)

All numbers are little-endian, those inside keys and signatures too.
Source: AMD publication 55766, appendix "SEV certificate format".
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

VERSION: Final = 1
HEAD: Final = struct.Struct("<IBB2xII")
KEY_NBYTES: Final = 1028
SIGNATURE_HEAD: Final = struct.Struct("<II")
SIGNATURE_NBYTES: Final = 512
_BODY_NBYTES: Final = HEAD.size + KEY_NBYTES
_BLOCK_NBYTES: Final = SIGNATURE_HEAD.size + SIGNATURE_NBYTES
CERT_NBYTES: Final = _BODY_NBYTES + 2 * _BLOCK_NBYTES
EC_NUMBER_NBYTES: Final = 72
P384: Final = 2  # the curve's number in a public key


class Usage(IntEnum):
    """What a key is for."""

    ARK = 0x00
    ASK = 0x13
    INVALID = 0x1000
    OCA = 0x1001
    PEK = 0x1002
    PDH = 0x1003
    CEK = 0x1004


class Algo(IntEnum):
    """What a key does, and the hash it does it with; bit 8 is SHA-384."""

    INVALID = 0
    RSA_SHA256 = 0x001
    ECDSA_SHA256 = 0x002
    ECDH_SHA256 = 0x003
    RSA_SHA384 = 0x101
    ECDSA_SHA384 = 0x102
    ECDH_SHA384 = 0x103


_NO_SIGNATURE: Final = SIGNATURE_HEAD.pack(Usage.INVALID, Algo.INVALID).ljust(_BLOCK_NBYTES, b"\0")


def hash_of(algo: int) -> hashes.HashAlgorithm:
    """The hash that goes with an algorithm number."""
    return hashes.SHA384() if algo & 0x100 else hashes.SHA256()


@dataclass(frozen=True)
class KeyPair:
    """A private P-384 key and what it is for."""

    usage: Usage
    algo: Algo
    private: ec.EllipticCurvePrivateKey

    @classmethod
    def generate(cls, usage: Usage, algo: Algo = Algo.ECDSA_SHA256) -> KeyPair:
        """A fresh one."""
        return cls(usage, algo, ec.generate_private_key(ec.SECP384R1()))

    def sign(self, message: bytes) -> bytes:
        """An ECDSA signature as these formats hold it: R and S of 72 bytes each."""
        numbers = decode_dss_signature(self.private.sign(message, ec.ECDSA(hash_of(self.algo))))
        return b"".join(number.to_bytes(EC_NUMBER_NBYTES, "little") for number in numbers)


@dataclass(frozen=True)
class Certificate:
    """A certificate: the signed body, and two signature blocks (520 bytes each), used or not."""

    body: bytes
    blocks: tuple[bytes, bytes] = (_NO_SIGNATURE, _NO_SIGNATURE)

    @classmethod
    def of(cls, pair: KeyPair, api: tuple[int, int]) -> Certificate:
        """An unsigned certificate of a key."""
        numbers = pair.private.public_key().public_numbers()
        key = struct.pack("<I", P384)
        key += b"".join(n.to_bytes(EC_NUMBER_NBYTES, "little") for n in (numbers.x, numbers.y))
        return cls(HEAD.pack(VERSION, *api, pair.usage, pair.algo) + key.ljust(KEY_NBYTES, b"\0"))

    @classmethod
    def unpack(cls, data: bytes) -> Certificate:
        """From 2,084 bytes; nothing is believed yet."""
        if len(data) != CERT_NBYTES:
            raise ValueError(f"a SEV certificate has {CERT_NBYTES} bytes, not {len(data)}")
        middle = _BODY_NBYTES + _BLOCK_NBYTES
        return cls(data[:_BODY_NBYTES], (data[_BODY_NBYTES:middle], data[middle:]))

    def pack(self) -> bytes:
        """The 2,084 bytes."""
        return self.body + b"".join(self.blocks)

    @property
    def version(self) -> int:
        """Of the format."""
        return int(HEAD.unpack_from(self.body)[0])

    @property
    def usage(self) -> int:
        """Of the certified key."""
        return int(HEAD.unpack_from(self.body)[3])

    @property
    def algo(self) -> int:
        """Of the certified key."""
        return int(HEAD.unpack_from(self.body)[4])

    def signed(self, signature: bytes, usage: Usage, algo: Algo) -> Certificate:
        """With a signature in the first block that is free; ValueError if none is."""
        return self.with_block((SIGNATURE_HEAD.pack(usage, algo) + signature).ljust(_BLOCK_NBYTES, b"\0"))

    def with_block(self, block: bytes) -> Certificate:
        """With a whole signature block (520 bytes) in the first place that is free; ValueError if none is."""
        first, second = self.blocks
        if signer_of(first) == (Usage.INVALID, Algo.INVALID):
            return Certificate(self.body, (block, second))
        if signer_of(second) == (Usage.INVALID, Algo.INVALID):
            return Certificate(self.body, (first, block))
        raise ValueError("both signature blocks are in use")

    def signed_by(self, pair: KeyPair) -> Certificate:
        """With the signature of one of our keys."""
        return self.signed(pair.sign(self.body), pair.usage, pair.algo)

    def block_of(self, usage: Usage) -> bytes | None:
        """The signature block that a key of this usage made."""
        return next((block for block in self.blocks if signer_of(block)[0] == usage), None)


def signer_of(block: bytes) -> tuple[int, int]:
    """Usage and algorithm of the key that made a signature block."""
    usage, algo = SIGNATURE_HEAD.unpack_from(block)
    return usage, algo
