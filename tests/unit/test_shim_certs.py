"""What makes a SEV certificate valid: signature, version, key, and who may sign what."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from sevkvm.abi.sev import FwStatus
from sevkvm.shim.cert_check import public_key, validate
from sevkvm.shim.certs import CERT_NBYTES, Algo, Certificate, KeyPair, Usage

API = (1, 55)
GOOD, WRONG, BAD = FwStatus.SUCCESS, FwStatus.INVALID_CERTIFICATE, FwStatus.BAD_SIGNATURE


def pair(usage: Usage, algo: Algo = Algo.ECDSA_SHA256) -> KeyPair:
    return KeyPair.generate(usage, algo)


def cert(pair: KeyPair) -> Certificate:
    return Certificate.of(pair, API)


@pytest.mark.parametrize("signer", [Usage.OCA, Usage.PEK, Usage.PDH, Usage.CEK, Usage.ASK])
@pytest.mark.parametrize("signed", [Usage.OCA, Usage.PEK, Usage.PDH, Usage.CEK, Usage.ASK])
def test_who_may_sign_what(signer: Usage, signed: Usage) -> None:
    allowed = {
        (Usage.PEK, Usage.PDH),
        (Usage.OCA, Usage.PEK),
        (Usage.CEK, Usage.PEK),
        (Usage.OCA, Usage.OCA),
        (Usage.ASK, Usage.CEK),
    }
    by = pair(signer)
    status = validate(cert(pair(signed)).signed_by(by), cert(by))
    assert status == (GOOD if (signer, signed) in allowed else WRONG)


@pytest.mark.parametrize("algo", [Algo.ECDSA_SHA256, Algo.ECDSA_SHA384])
def test_either_hash_will_do(algo: Algo) -> None:
    by = pair(Usage.OCA, algo)
    signed = cert(pair(Usage.PEK)).signed_by(by)
    assert validate(signed, cert(by)) == GOOD
    other = Algo.ECDSA_SHA384 if algo == Algo.ECDSA_SHA256 else Algo.ECDSA_SHA256
    assert validate(signed, cert(replace(by, algo=other))) == WRONG  # nobody of that description has signed


def test_a_diffie_hellman_key_signs_nothing() -> None:
    by = pair(Usage.OCA, Algo.ECDH_SHA256)
    signed = cert(pair(Usage.PEK)).signed(bytes(144), Usage.OCA, Algo.ECDH_SHA256)
    assert validate(signed, cert(by)) == FwStatus.UNSUPPORTED


def test_either_signature_block_may_be_the_one() -> None:
    oca, cek = pair(Usage.OCA), pair(Usage.CEK)
    both = cert(pair(Usage.PEK)).signed_by(cek).signed_by(oca)
    assert validate(both, cert(oca)) == validate(both, cert(cek)) == GOOD
    with pytest.raises(ValueError, match="in use"):
        both.signed_by(oca)
    twice = cert(pair(Usage.PEK)).signed_by(pair(Usage.OCA)).signed_by(oca)
    assert validate(twice, cert(oca)) == GOOD  # the last one of that description counts
    assert validate(Certificate(twice.body, twice.blocks[::-1]), cert(oca)) == BAD


def test_a_block_that_is_half_unused_is_malformed() -> None:
    oca = pair(Usage.OCA)
    good = cert(oca).signed_by(oca)
    for head in ((Usage.INVALID, Algo.ECDSA_SHA256), (Usage.OCA, Algo.INVALID), (0, 0)):
        half = struct.pack("<II", *head) + good.blocks[1][8:]
        assert validate(Certificate(good.body, (good.blocks[0], half)), cert(oca)) == BAD


def rsa_cert(key: rsa.RSAPrivateKey, usage: Usage, algo: Algo) -> Certificate:
    numbers = key.public_key().public_numbers()
    body = struct.pack("<IBB2xII", 1, *API, usage, algo) + struct.pack("<I", key.key_size)
    body += numbers.e.to_bytes(512, "little") + numbers.n.to_bytes(512, "little")
    return Certificate(body)


@pytest.mark.parametrize("algo", [Algo.RSA_SHA256, Algo.RSA_SHA384])
def test_an_owner_s_ca_may_have_an_rsa_key(algo: Algo) -> None:
    key = rsa.generate_private_key(65537, 2048)
    hash_ = hashes.SHA256() if algo == Algo.RSA_SHA256 else hashes.SHA384()
    pek = cert(pair(Usage.PEK))
    raw = key.sign(pek.body, padding.PSS(padding.MGF1(hash_), hash_.digest_size), hash_)[::-1]
    signed, by = pek.signed(raw, Usage.OCA, algo), rsa_cert(key, Usage.OCA, algo)
    assert validate(signed, by) == GOOD
    assert validate(pek.signed(raw[::-1], Usage.OCA, algo), by) == BAD
    assert validate(pek.signed(raw, Usage.OCA, Algo.ECDSA_SHA256), by) == WRONG


def test_keys_that_are_none() -> None:
    good = cert(pair(Usage.PEK))
    assert public_key(good) is not None
    words = {8: 0x1000, 12: 0, 16: 1}  # usage, algorithm, curve
    words_of_nobody = {8: 0x77, 12: 9}
    for at, value in (*words.items(), *words_of_nobody.items(), (20, 0)):
        body = good.body[:at] + struct.pack("<I", value) + good.body[at + 4 :]
        assert public_key(Certificate(body)) is None, (at, value)
    for size in (0, 8, 5000, 0xFFFFFFFF):
        body = struct.pack("<IBB2xIII", 1, 1, 55, Usage.OCA, Algo.RSA_SHA256, size).ljust(1044, b"\xff")
        assert public_key(Certificate(body)) is None, size


def test_only_whole_certificates_are_read() -> None:
    data = cert(pair(Usage.PEK)).pack()
    assert Certificate.unpack(data).pack() == data
    assert len(data) == CERT_NBYTES == 2084
    for wrong in (data[:-1], data + b"\0", b""):
        with pytest.raises(ValueError, match="2084"):
            Certificate.unpack(wrong)
