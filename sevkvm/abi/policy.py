"""Guest policies: what a policy's number says.

The bits are in policybits.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

from sevkvm.abi.policybits import (
    POLICY_ES,
    POLICY_NODBG,
    POLICY_RESERVED,
    SEV_BITS,
    SNP_BITS,
    SNP_POLICY_DEBUG,
    SNP_POLICY_RESERVED,
    PolicyBit,
)


class Policy(NamedTuple):
    """A SEV or SEV-ES guest policy, 32 bits; not the SNP layout."""

    value: int

    @property
    def debug_allowed(self) -> bool:
        """Bit NODBG is clear."""
        return not self.value & POLICY_NODBG

    @property
    def es(self) -> bool:
        """The guest is a SEV-ES guest."""
        return bool(self.value & POLICY_ES)

    @property
    def api_version(self) -> tuple[int, int]:
        """The least firmware API (major, minor) that the owner accepts."""
        return self.value >> 16 & 0xFF, self.value >> 24 & 0xFF

    @property
    def bits(self) -> tuple[PolicyBit, ...]:
        """Every bit that has a meaning."""
        return SEV_BITS

    @property
    def reserved(self) -> int:
        """The reserved bits that are set."""
        return self.value & POLICY_RESERVED

    @property
    def flags(self) -> tuple[str, ...]:
        """Names of the bits that are set; a reserved bit shows as ``bitN``."""
        return _flags(self)

    @property
    def sentences(self) -> tuple[str, ...]:
        """What each set bit means, in the order of ``flags`` (reserved bits left out)."""
        return tuple(bit.when_set for bit in SEV_BITS if self.value & bit.mask)


class SnpPolicy(NamedTuple):
    """A SEV-SNP guest policy, 64 bits."""

    value: int

    @property
    def debug_allowed(self) -> bool:
        """Bit DEBUG is set."""
        return bool(self.value & SNP_POLICY_DEBUG)

    @property
    def es(self) -> bool:
        """Registers are encrypted: always."""
        return True

    @property
    def api_version(self) -> tuple[int, int]:
        """The least firmware ABI (major, minor) that the owner accepts."""
        return self.value >> 8 & 0xFF, self.value & 0xFF

    @property
    def bits(self) -> tuple[PolicyBit, ...]:
        """Every bit that has a meaning, and the one that must be one."""
        return SNP_BITS

    @property
    def reserved(self) -> int:
        """The reserved bits that are set and must not be."""
        return self.value & SNP_POLICY_RESERVED

    @property
    def flags(self) -> tuple[str, ...]:
        """Names of the bits that are set; a reserved bit shows as ``bitN``."""
        return _flags(self)

    @property
    def sentences(self) -> tuple[str, ...]:
        """What each set bit means, in the order of ``flags`` (reserved bits left out)."""
        return tuple(bit.when_set for bit in SNP_BITS if self.value & bit.mask)


AnyPolicy: TypeAlias = Policy | SnpPolicy


def _flags(policy: AnyPolicy) -> tuple[str, ...]:
    names = [bit.name for bit in policy.bits if policy.value & bit.mask]
    return (*names, *(f"bit{bit}" for bit in _ones(policy.reserved)))


def _ones(mask: int) -> Iterator[int]:
    return (bit for bit in range(mask.bit_length()) if mask >> bit & 1)
