"""Policies bit by bit, what is wrong with them, and where QEMU's command line says them."""

from __future__ import annotations

import json

import pytest

from sevkvm import errors
from sevkvm.abi.policy import Policy, SnpPolicy
from sevkvm.abi.policybits import POLICY_RESERVED, SEV_BITS, SNP_BITS, SNP_POLICY_RESERVED
from sevkvm.host.qemusev import from_argv, from_text
from sevkvm.memory.policyadvice import Severity, advice


def test_every_bit_of_a_policy_is_named_reserved_or_part_of_the_version() -> None:
    sev = sum(bit.mask for bit in SEV_BITS)
    assert sev & POLICY_RESERVED == 0
    assert sev | POLICY_RESERVED | 0xFFFF << 16 == (1 << 32) - 1
    snp = sum(bit.mask for bit in SNP_BITS)
    assert snp & SNP_POLICY_RESERVED == 0
    assert snp | SNP_POLICY_RESERVED | 0xFFFF == (1 << 64) - 1
    assert [bit.bit for bit in (*SEV_BITS, *SNP_BITS)] == [*range(6), *range(16, 26)]


def test_a_snp_policy() -> None:
    policy = SnpPolicy(1 << 19 | 1 << 17 | 0x133)
    assert policy.flags == ("MBO", "DEBUG")
    assert (policy.debug_allowed, policy.es, policy.api_version) == (True, True, (1, 0x33))
    assert SnpPolicy(1 << 40 | 1 << 26).flags == ("bit26", "bit40")
    assert not SnpPolicy(0x30000).debug_allowed
    assert policy.sentences == ("the reserved bit that must be one is set", "debugging is allowed")


def codes(policy: Policy | SnpPolicy, **options: bool) -> list[str]:
    return [each.code for each in advice(policy, **options)]


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (0xB, []),
        (0xF, []),
        (0x27, []),
        (0x0, ["debug", "key-sharing"]),
        (0x1, ["key-sharing"]),
        (0xE, ["debug", "es-debug"]),
        (0x7, ["es-send"]),
        (0x1B, ["nosend"]),
        (0x2B, ["nosend"]),
        (0x4B, ["reserved"]),
        (0x37 | 0x3700_0100, ["reserved"]),
        (0x2_000B, ["api"]),
        (0x30003, ["api"]),
        (0x1_0000_000B, ["too-long"]),
    ],
)
def test_advice_on_sev(value: int, found: list[str]) -> None:
    assert codes(Policy(value)) == found


def test_what_cannot_be_launched_comes_first() -> None:
    told = advice(Policy(0x1_0000_0000))
    assert [each.severity for each in told] == [Severity.INVALID, Severity.WARNING, Severity.WARNING]


def test_a_guest_to_be_migrated_that_must_not_be_sent() -> None:
    assert codes(Policy(0xB), must_migrate=True) == ["migration"]
    assert codes(Policy(0x23), must_migrate=True) == []


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (0x20000, []),
        (0x30000, []),
        (0xA0000, ["debug"]),
        (0x10000, ["must-be-one"]),
        (0x5, ["must-be-one"]),
        (1 << 26 | 1 << 17, ["reserved"]),
        (1 << 63 | 1 << 19, ["must-be-one", "reserved", "debug"]),
    ],
)
def test_advice_on_snp(value: int, found: list[str]) -> None:
    assert codes(SnpPolicy(value)) == found


QEMU = ["qemu-system-x86_64", "-machine", "q35,confidential-guest-support=sev0"]


@pytest.mark.parametrize(
    ("text", "policy", "stated"),
    [
        ("sev-guest,id=s,cbitpos=51,policy=0x5", 5, True),
        ("sev-guest,id=s,policy=17", 17, True),
        ("sev-guest,id=s,policy=017", 15, True),
        ("sev-guest,id=s", 1, False),
        ("sev-snp-guest,id=s,policy=0xb0000", 0xB0000, True),
        ("sev-snp-guest,id=s", 0x30000, False),
        ('{"qom-type":"sev-guest","id":"lsec0","cbitpos":51,"policy":3}', 3, True),
        ("qemu-kvm -m 4G -object 'sev-guest,id=s,policy=0x7' -S", 7, True),
        ("qemu-kvm --object sev-guest,id=s,policy=0x7", 7, True),
    ],
)
def test_the_policy_on_a_command_line(text: str, policy: int, stated: bool) -> None:
    used = from_text(text).used
    assert used is not None
    assert (used.policy, used.stated, used.snp) == (policy, stated, "snp" in text)


def test_the_object_that_the_machine_names_is_used() -> None:
    objects = ["-object", "sev-guest,id=other,policy=1", "-object", "sev-guest,id=sev0,policy=2"]
    found = from_argv([*QEMU, *objects, "-only-migratable"])
    assert found.used is not None
    assert (found.used.policy, found.only_migratable, len(found.objects)) == (2, True, 2)
    assert from_argv(objects).used is None  # two, and nobody says which
    assert from_argv(["qemu-kvm", "-machine", "memory-encryption=other", *objects]).used == found.objects[0]
    assert from_argv([*QEMU, *objects[:2]]).used is None  # another one is named, which is not there


@pytest.mark.parametrize(
    "text",
    [
        "",
        "memory-backend-ram,size=1G",
        "qemu-kvm -m 1G",
        "'unbalanced",
        "sev-guest,policy=five",
        "sev-guest,policy=-1",
        "sev-guest,policy=0x1_0",
        "sev-guest,policy=" + "9" * 5000,
        '{"qom-type":"sev-guest"',
        '{"qom-type":' + '{"a":' * 5000,
        json.dumps({"qom-type": "sev-guest", "policy": None}),
    ],
)
def test_what_says_no_policy_is_refused(text: str) -> None:
    with pytest.raises(errors.UsageError):
        from_text(text)
