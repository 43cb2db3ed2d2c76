"""Is this SEV certificate what it says? Keys read from certificates, signatures verified.

The order of checks is that of AMD's published firmware (amd/AMD-ASPFW, sev_cert.c).
"""

from __future__ import annotations

from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from sevkvm.abi.sev import FwStatus
from sevkvm.shim.certs import (
    EC_NUMBER_NBYTES,
    HEAD,
    P384,
    SIGNATURE_HEAD,
    SIGNATURE_NBYTES,
    VERSION,
    Algo,
    Certificate,
    Usage,
    hash_of,
    signer_of,
)

_RSA: Final = (Algo.RSA_SHA256, Algo.RSA_SHA384)
_ECDSA: Final = (Algo.ECDSA_SHA256, Algo.ECDSA_SHA384)
_SIGNERS: Final = {  # whose signature a certificate needs
    Usage.PDH: (Usage.PEK,),
    Usage.PEK: (Usage.OCA, Usage.CEK),
    Usage.OCA: (Usage.OCA,),
    Usage.CEK: (Usage.ASK,),
}
PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey


def public_key(cert: Certificate) -> PublicKey | None:
    """The certified key; None for one that is no such key, or not on P-384."""
    if cert.usage == Usage.INVALID or cert.usage not in tuple(Usage):
        return None
    try:
        return _rsa_key(cert.body) if cert.algo in _RSA else _ec_key(cert.body, cert.algo)
    except ValueError:
        return None


def _number(data: bytes, start: int, nbytes: int) -> int:
    return int.from_bytes(data[start : start + nbytes], "little")


def _ec_key(body: bytes, algo: int) -> ec.EllipticCurvePublicKey:
    start = HEAD.size
    if algo not in tuple(Algo) or algo == Algo.INVALID or _number(body, start, 4) != P384:
        raise ValueError
    x, y = (_number(body, start + 4 + i * EC_NUMBER_NBYTES, EC_NUMBER_NBYTES) for i in (0, 1))
    return ec.EllipticCurvePublicNumbers(x, y, ec.SECP384R1()).public_key()


def _rsa_key(body: bytes) -> rsa.RSAPublicKey:
    nbytes, start = _number(body, HEAD.size, 4) // 8, HEAD.size + 4
    if nbytes > SIGNATURE_NBYTES:
        raise ValueError
    exponent, modulus = (_number(body, start + i * SIGNATURE_NBYTES, nbytes) for i in (0, 1))
    return rsa.RSAPublicNumbers(exponent, modulus).public_key()


def _signature_is_good(key: PublicKey, algo: int, block: bytes, body: bytes) -> bool:
    data = block[SIGNATURE_HEAD.size :]
    try:
        if isinstance(key, rsa.RSAPublicKey):
            pss = padding.PSS(padding.MGF1(hash_of(algo)), padding.PSS.AUTO)
            key.verify(data[: key.key_size // 8][::-1], body, pss, hash_of(algo))
        else:
            r, s = (_number(data, i * EC_NUMBER_NBYTES, EC_NUMBER_NBYTES) for i in (0, 1))
            key.verify(encode_dss_signature(r, s), body, ec.ECDSA(hash_of(algo)))
    except (InvalidSignature, ValueError):
        return False
    return True


def validate(cert: Certificate, by: Certificate) -> FwStatus:
    """Is ``cert`` well-formed and signed by the key of ``by``? SUCCESS, or the firmware's complaint."""
    key = public_key(by)
    if key is None:
        return FwStatus.INVALID_CERTIFICATE
    status = FwStatus.INVALID_CERTIFICATE
    for block in cert.blocks:
        usage, algo = signer_of(block)
        if (usage == Usage.INVALID) != (algo == Algo.INVALID):
            return FwStatus.BAD_SIGNATURE
        if (usage, algo) != (by.usage, by.algo):
            continue
        if algo not in (*_RSA, *_ECDSA):
            return FwStatus.UNSUPPORTED
        good = _signature_is_good(key, algo, block, cert.body)
        status = FwStatus.SUCCESS if good else FwStatus.BAD_SIGNATURE
    if status != FwStatus.SUCCESS:
        return status
    if cert.version != VERSION or public_key(cert) is None:
        return FwStatus.INVALID_CERTIFICATE
    signers = next((signers for usage, signers in _SIGNERS.items() if usage == cert.usage), ())
    return FwStatus.SUCCESS if by.usage in signers else FwStatus.INVALID_CERTIFICATE
