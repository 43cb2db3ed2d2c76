"""What is wrong with a policy, or unwise: what a launch would refuse, contradictions, what an owner should know."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from sevkvm.abi.policy import Policy, SnpPolicy
from sevkvm.abi.policybits import (
    POLICY_DOMAIN,
    POLICY_ES,
    POLICY_NOKS,
    POLICY_NOSEND,
    POLICY_SEV,
    SNP_POLICY_MUST_BE_ONE,
)

if TYPE_CHECKING:
    from sevkvm.abi.policy import AnyPolicy

# Firmware with an API of 0.x and 1.x has been seen, none with a later one.
_LAST_API_MAJOR = 1


class Severity(str, Enum):
    """INVALID: no guest can be launched with it. WARNING: it lets the host do, or contradicts, what owners want."""

    INVALID = "invalid"
    WARNING = "warning"


@dataclass(frozen=True)
class Advice:
    """One thing to know; ``code`` is its name for programs."""

    severity: Severity
    code: str
    text: str


def advice(policy: AnyPolicy, *, must_migrate: bool = False) -> list[Advice]:
    """All there is to say of a policy, the worst first.

    must_migrate: the VMM was told that the guest is going to be migrated.
    """
    found = _of_snp(policy) if isinstance(policy, SnpPolicy) else _of_sev(policy, must_migrate)
    return sorted(found, key=lambda each: list(Severity).index(each.severity))


def _warn(code: str, text: str) -> Advice:
    return Advice(Severity.WARNING, code, text)


def _of_sev(policy: Policy, must_migrate: bool) -> Iterator[Advice]:
    value = policy.value
    if value >> 32:
        yield Advice(Severity.INVALID, "too-long", "a SEV policy has 32 bits, not more; with --snp it has 64")
    if policy.reserved:
        yield _warn("reserved", f"reserved bits are set (mask 0x{policy.reserved:x}): they must be zero")
    if policy.api_version[0] > _LAST_API_MAJOR:
        major, minor = policy.api_version
        yield _warn(
            "api",
            f"no known firmware has an API of {major}.{minor}; if this is a SEV-SNP policy, decode it with --snp",
        )
    if policy.debug_allowed:
        yield _warn(
            "debug",
            "debugging is allowed: whoever runs the host may have the guest's memory decrypted; "
            "right for development, never in production (set NODBG)",
        )
    if policy.debug_allowed and value & POLICY_ES:
        yield _warn(
            "es-debug",
            "ES hides registers from the host, but without NODBG the memory they are saved in is open",
        )
    if not value & POLICY_NOKS:
        yield _warn("key-sharing", "the host may give this guest's key to another guest (set NOKS)")
    yield from _of_sending(value, must_migrate)


def _of_sending(value: int, must_migrate: bool) -> Iterator[Advice]:
    narrowed = [name for mask, name in ((POLICY_DOMAIN, "DOMAIN"), (POLICY_SEV, "SEV")) if value & mask]
    if value & POLICY_NOSEND and narrowed:
        yield _warn("nosend", f"NOSEND forbids all sending: {' and '.join(narrowed)} say where to, in vain")
    if value & POLICY_NOSEND and must_migrate:
        yield _warn("migration", "the VMM is to keep the guest migratable, but NOSEND forbids it")
    if value & POLICY_ES and not value & (POLICY_NOSEND | POLICY_SEV):
        yield _warn(
            "es-send", "ES is required here, but it may be sent where there is no SEV (set SEV or NOSEND)"
        )


def _of_snp(policy: SnpPolicy) -> Iterator[Advice]:
    value = policy.value
    if not value & SNP_POLICY_MUST_BE_ONE:
        small = " (is it a SEV policy? then without --snp)" if value < 1 << 16 else ""
        yield Advice(Severity.INVALID, "must-be-one", f"bit 17 must be one: every launch is refused{small}")
    if policy.reserved:
        yield Advice(
            Severity.INVALID,
            "reserved",
            f"reserved bits are set (mask 0x{policy.reserved:x}): Linux refuses them",
        )
    if policy.debug_allowed:
        yield _warn(
            "debug",
            "debugging is allowed: whoever runs the host may have the guest's memory decrypted; never in production",
        )
