"""A guest owner of the other side: certificates, session, measurement and secret as AMD publication 55766 has them.

It shares no code with the pretend firmware that it judges, not even the layout of a certificate.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

CERT = 0x824
SIGNED = 0x414  # the part of a certificate that signatures cover
ARK, ASK, NOBODY, OCA, PEK, PDH, CEK = 0x00, 0x13, 0x1000, 0x1001, 0x1002, 0x1003, 0x1004
RSA_SHA256, ECDSA_SHA256, ECDH_SHA256 = 1, 2, 3


class Refused(Exception):
    """The owner does not believe it."""


def little(data: bytes) -> int:
    return int.from_bytes(data, "little")


def believe(condition: bool, what: str) -> None:
    if not condition:
        raise Refused(what)


def point(cert: bytes) -> ec.EllipticCurvePublicKey:
    """The P-384 key in a certificate."""
    believe(little(cert[0x10:0x14]) == 2, "the key is not on P-384")
    x, y = little(cert[0x14:0x5C]), little(cert[0x5C:0xA4])
    return ec.EllipticCurvePublicNumbers(x, y, ec.SECP384R1()).public_key()


def kind(cert: bytes) -> tuple[int, int, int]:
    """(version, usage, algorithm)."""
    return little(cert[0:4]), little(cert[8:12]), little(cert[12:16])


def signature(cert: bytes, number: int) -> tuple[int, int, bytes]:
    """(usage and algorithm of the signer, signature)."""
    start = SIGNED + number * 0x208
    return (
        little(cert[start : start + 4]),
        little(cert[start + 4 : start + 8]),
        cert[start + 8 : start + 0x208],
    )


def check_ecdsa(key: ec.EllipticCurvePublicKey, message: bytes, raw: bytes, what: str) -> None:
    der = utils.encode_dss_signature(little(raw[:72]), little(raw[72:144]))
    try:
        key.verify(der, message, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        raise Refused(what) from None


def check_rsa(key: rsa.RSAPublicKey, message: bytes, raw: bytes, what: str) -> None:
    pss = padding.PSS(padding.MGF1(hashes.SHA256()), 32)
    try:
        key.verify(bytes(reversed(raw[: key.key_size // 8])), message, pss, hashes.SHA256())
    except InvalidSignature:
        raise Refused(what) from None


def check_signed(cert: bytes, number: int, signer: bytes, what: str) -> None:
    usage, algorithm, raw = signature(cert, number)
    believe((usage, algorithm) == kind(signer)[1:], f"{what}: another signer")
    check_ecdsa(point(signer), cert[:SIGNED], raw, what)


@dataclass
class AmdCert:
    """ASK or ARK."""

    usage: int
    key_id: bytes
    certifying_id: bytes
    key: rsa.RSAPublicKey
    signed: bytes
    signature: bytes
    nbytes: int

    @classmethod
    def parse(cls, data: bytes) -> AmdCert:
        believe(little(data[:4]) == 1, "an AMD certificate of another version")
        exponent_bits, modulus_bits = little(data[0x38:0x3C]), little(data[0x3C:0x40])
        modulus_at = 0x40 + exponent_bits // 8
        signed = modulus_at + modulus_bits // 8
        numbers = rsa.RSAPublicNumbers(little(data[0x40:modulus_at]), little(data[modulus_at:signed]))
        end = signed + modulus_bits // 8
        return cls(
            little(data[0x24:0x28]), data[4:20], data[20:36], numbers.public_key(),
            data[:signed], data[signed:end], end,
        )  # fmt: skip


def verify_amd_chain(chain: bytes) -> rsa.RSAPublicKey:
    """ASK signed by ARK, ARK by itself; the ASK's key."""
    ask = AmdCert.parse(chain)
    ark = AmdCert.parse(chain[ask.nbytes :])
    believe((ask.usage, ark.usage) == (ASK, ARK), "not ASK and ARK")
    believe(ask.certifying_id == ark.certifying_id == ark.key_id, "the ASK names another ARK")
    check_rsa(ark.key, ark.signed, ark.signature, "ARK")
    check_rsa(ark.key, ask.signed, ask.signature, "ASK")
    return ask.key


def verify_platform(pdh: bytes, chain: bytes, cek: bytes, amd_chain: bytes) -> None:
    """All signatures from AMD's root to the PDH; ``cek`` is the signed one, from AMD's server."""
    pek, oca, exported_cek = (chain[i * CERT : (i + 1) * CERT] for i in range(3))
    believe(len(pdh) == CERT and len(chain) == 3 * CERT, "lengths")
    wanted = [(1, usage, ECDSA_SHA256) for usage in (PEK, OCA, CEK)]
    believe([kind(cert) for cert in (pek, oca, exported_cek)] == wanted, "PEK, OCA, CEK")
    believe(kind(pdh) == (1, PDH, ECDH_SHA256), "PDH")
    believe(cek[:SIGNED] == exported_cek[:SIGNED], "another chip's CEK")
    usage, algorithm, raw = signature(cek, 0)
    believe((usage, algorithm) == (ASK, RSA_SHA256), "CEK: another signer")
    check_rsa(verify_amd_chain(amd_chain), cek[:SIGNED], raw, "CEK")
    check_signed(oca, 0, oca, "OCA")
    by_oca = 0 if signature(pek, 0)[0] == OCA else 1
    check_signed(pek, by_oca, oca, "PEK by OCA")
    check_signed(pek, 1 - by_oca, cek, "PEK by CEK")
    check_signed(pdh, 0, pek, "PDH")


def sp800_108(key: bytes, label: str, context: bytes = b"") -> bytes:
    message = b"\x01\0\0\0" + label.encode() + b"\0" + context + (128).to_bytes(4, "little")
    return hmac.new(key, message, hashlib.sha256).digest()[:16]


def aes_ctr(key: bytes, iv: bytes, data: bytes) -> bytes:
    return Cipher(algorithms.AES(key), modes.CTR(iv)).encryptor().update(data)


def raw_cert(key: ec.EllipticCurvePrivateKey, usage: int, algorithm: int) -> bytes:
    """A certificate that nobody has signed."""
    numbers = key.public_key().public_numbers()
    words = (1, 0x0000_3701, usage, algorithm, 2)  # version, API 1.55, usage, algorithm, curve
    head = b"".join(word.to_bytes(4, "little") for word in words)
    body = head + numbers.x.to_bytes(72, "little") + numbers.y.to_bytes(72, "little")
    unused = NOBODY.to_bytes(4, "little").ljust(0x208, b"\0")
    return body.ljust(SIGNED, b"\0") + 2 * unused


def sign_cert(cert: bytes, key: ec.EllipticCurvePrivateKey, usage: int, number: int = 0) -> bytes:
    """With an ECDSA signature in block ``number``."""
    r, s = utils.decode_dss_signature(key.sign(cert[:SIGNED], ec.ECDSA(hashes.SHA256())))
    block = usage.to_bytes(4, "little") + ECDSA_SHA256.to_bytes(4, "little")
    block = (block + r.to_bytes(72, "little") + s.to_bytes(72, "little")).ljust(0x208, b"\0")
    start = SIGNED + number * 0x208
    return cert[:start] + block + cert[start + 0x208 :]


class Owner:
    """Who launches a guest with ``policy`` on a platform whose PDH certificate is ``pdh``."""

    def __init__(self, pdh: bytes, policy: int) -> None:
        self.policy = policy
        self.tek, self.tik = os.urandom(16), os.urandom(16)
        self._key = ec.generate_private_key(ec.SECP384R1())
        self.cert = raw_cert(self._key, PDH, ECDH_SHA256)
        nonce, iv = os.urandom(16), os.urandom(16)
        master = sp800_108(self._key.exchange(ec.ECDH(), point(pdh)), "sev-master-secret", nonce)
        wrapped = aes_ctr(sp800_108(master, "sev-kek"), iv, self.tek + self.tik)
        wrap_mac = hmac.new(sp800_108(master, "sev-kik"), wrapped, hashlib.sha256).digest()
        self.session = nonce + wrapped + iv + wrap_mac + self._mac(policy.to_bytes(4, "little"))

    def _mac(self, message: bytes) -> bytes:
        return hmac.new(self.tik, message, hashlib.sha256).digest()

    def verify_measurement(self, blob: bytes, version: tuple[int, int, int], launched: bytes) -> None:
        """Is it ``launched``, and nothing else, that the firmware of that version measured?"""
        mac, nonce = blob[:32], blob[32:]
        believe(len(nonce) == 16, "the measurement's length")
        digest = hashlib.sha256(launched).digest()
        message = bytes((4, *version)) + self.policy.to_bytes(4, "little") + digest + nonce
        believe(hmac.compare_digest(mac, self._mac(message)), "the measurement")

    def secret(self, text: bytes, measurement: bytes, flags: int = 0) -> tuple[bytes, bytes]:
        """(header, packet) that LAUNCH_SECRET takes after this measurement."""
        iv = os.urandom(16)
        packet = aes_ctr(self.tek, iv, text)
        lengths = 2 * len(packet).to_bytes(4, "little")
        head = flags.to_bytes(4, "little") + iv
        mac = self._mac(b"\x01" + head + lengths + packet + measurement[:32])
        return head + mac, packet


def verify_report(report: bytes, pek: bytes, nonce: bytes, launched: bytes, policy: int) -> None:
    """An attestation report (208 bytes), signed by the PEK."""
    believe(len(report) == 0xD0 and report[:16] == nonce, "the report's nonce")
    believe(report[16:48] == hashlib.sha256(launched).digest(), "the report's digest")
    believe(little(report[48:52]) == policy, "the report's policy")
    believe((little(report[52:56]), little(report[56:60])) == (PEK, ECDSA_SHA256), "the report's signer")
    check_ecdsa(point(pek), report[:52], report[64:208], "the report's signature")
