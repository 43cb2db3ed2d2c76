"""How ``sevkvm policy`` explains a policy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from sevkvm.abi.policy import SnpPolicy
from sevkvm.cli.render import hexadecimal, print_facts, print_json
from sevkvm.cli.run import warn
from sevkvm.errors import EXIT_FAILURE
from sevkvm.memory.policyadvice import Severity, advice

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sevkvm.abi.policy import AnyPolicy
    from sevkvm.cli.policy_source import Found
    from sevkvm.memory.policyadvice import Advice

_SOURCES = {
    "argument": "as given",
    "options": "from the options",
    "firmware": "says the firmware",
    "qemu-args": "on QEMU's command line",
}
_KINDS = {"sev": "SEV", "sev-es": "SEV-ES", "sev-snp": "SEV-SNP"}


def tell(found: Found, *, as_json: bool, strict: bool) -> None:
    """Print it, and exit with 1 if it is invalid, or with ``strict`` if there is anything to warn of."""
    told = advice(found.policy, must_migrate=found.must_migrate)
    if as_json:
        print_json(policy_json(found, told))
    else:
        _print(found, told)
    finish(told, strict=strict)


def finish(told: Sequence[Advice], *, strict: bool) -> None:
    """Leave with the exit status that this advice calls for."""
    if any(strict or each.severity is Severity.INVALID for each in told):
        click.get_current_context().exit(EXIT_FAILURE)


def warn_of(told: Sequence[Advice]) -> None:
    """On stderr: for an answer on stdout that is the number alone."""
    for each in told:
        warn(each.text)


def policy_json(found: Found, told: Sequence[Advice]) -> dict[str, Any]:
    """The object of ``--json``."""
    policy = found.policy
    return {
        "value": hexadecimal(policy.value),
        "kind": _kind(policy),
        "source": found.source,
        "valid": not any(each.severity is Severity.INVALID for each in told),
        "debug_allowed": policy.debug_allowed,
        "flags": list(policy.flags),
        "api": list(policy.api_version),
        "bits": [
            {
                "bit": bit.bit,
                "name": bit.name,
                "set": bool(policy.value & bit.mask),
                "meaning": bit.when_set if policy.value & bit.mask else bit.when_clear,
                "owner": bit.owner,
                "tool": bit.tool or None,
            }
            for bit in policy.bits
        ],
        "reserved": hexadecimal(policy.reserved),
        "advice": [{"severity": each.severity.value, "code": each.code, "text": each.text} for each in told],
    }


def _kind(policy: AnyPolicy) -> str:
    if isinstance(policy, SnpPolicy):
        return "sev-snp"
    return "sev-es" if policy.es else "sev"


def _print(found: Found, told: Sequence[Advice]) -> None:
    policy = found.policy
    major, minor = policy.api_version
    facts = [
        ("policy", f"0x{policy.value:x}, {_KINDS[_kind(policy)]}, {_SOURCES[found.source]}"),
        ("debugging", "allowed" if policy.debug_allowed else "forbidden"),
        ("firmware", f"API {major}.{minor} or later"),
    ]
    print_facts(facts)
    width = max(len(bit.name) for bit in policy.bits)
    for bit in policy.bits:
        is_set = bool(policy.value & bit.mask)
        meaning = bit.when_set if is_set else bit.when_clear
        click.echo(f"{bit.bit:>3}  {int(is_set)}  {bit.name:{width}}  {meaning}")
        for who, text in (("owner", bit.owner), ("sevkvm", bit.tool)):
            if text:
                click.echo(f"{'':{width + 10}}{who}: {text}")
    for each in told:
        click.echo(f"{each.severity.value}: {each.text}")
