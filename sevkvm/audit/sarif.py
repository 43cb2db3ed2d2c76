"""An audit as SARIF 2.1.0, for programs that collect findings.

Source: OASIS Static Analysis Results Interchange Format (SARIF) Version 2.1.0, section 3. Addresses in guest
memory are ``address`` objects (3.32); those beyond 2**53, which many readers of JSON round, are text in ``properties``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from sevkvm._version import __version__
from sevkvm.audit.rules import RULES

if TYPE_CHECKING:
    from sevkvm.audit.report import Finding, Place, Report
    from sevkvm.audit.rules import Rule

SCHEMA: Final = "https://json.schemastore.org/sarif-2.1.0.json"


def sarif(report: Report, guest: str, rules: Sequence[Rule] = RULES) -> dict[str, Any]:
    """One log with one run. ``guest``: its name, for people; ``rules``: those that were to be asked."""
    indexes = {rule: index for index, rule in enumerate(rules)}
    told = [*_skipped(report), *_cut(report), *_unlisted(report)]
    return {
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "sevkvm audit",
                        "semanticVersion": __version__,
                        "rules": [_rule(rule) for rule in rules],
                    }
                },
                "invocations": [{"executionSuccessful": True, "toolExecutionNotifications": told}],
                "columnKind": "unicodeCodePoints",
                "results": [_result(finding, indexes[finding.rule]) for finding in report.findings],
                "properties": {
                    "guest": guest,
                    "kernel": report.kernel,
                    "roots": [_hex(root) for root in report.roots],
                    "complete": not report.cut,
                },
            }
        ],
    }


def _rule(rule: Rule) -> dict[str, Any]:
    return {
        "id": rule.id,
        "name": rule.name,
        "shortDescription": {"text": f"{rule.title[0].upper()}{rule.title[1:]}."},
        "fullDescription": {"text": rule.meaning},
        "help": {"text": rule.advice},
        "defaultConfiguration": {"level": rule.severity.value},
    }


def _result(finding: Finding, index: int) -> dict[str, Any]:
    result: dict[str, Any] = {
        "ruleId": finding.rule.id,
        "ruleIndex": index,
        "level": finding.severity.value,
        "message": {"text": _sentence(finding.message)},
        "locations": [_location(place) for place in finding.places],
    }
    if finding.vcpus:
        names = [f"vCPU {number}" for number in finding.vcpus]
        result["locations"] += [{"logicalLocations": [{"name": name, "kind": "vcpu"}]} for name in names]
    return result


def _location(place: Place) -> dict[str, Any]:
    properties: dict[str, Any] = {
        "gva": _hex(place.gva),
        "gpa": _hex(place.gpa),
        "size": place.nbytes,
        "roots": [_hex(root) for root in place.roots],
        "entries": [
            {
                "level": each.level,
                "table": _hex(each.table_gpa),
                "index": each.position,
                "entry": _hex(each.entry),
            }
            for each in place.entries
        ],
    }
    location: dict[str, Any] = {"properties": properties}
    if place.gpa is not None:
        location["physicalLocation"] = {
            "address": {"absoluteAddress": place.gpa, "length": place.nbytes, "kind": "page", "name": "gpa"}
        }
    if place.gva is not None:
        name = f"0x{place.gva:016x}"
        logical = {"name": name, "fullyQualifiedName": f"gva:{name}", "kind": "mapping"}
        location["logicalLocations"] = [logical]
    return location


def _skipped(report: Report) -> list[dict[str, Any]]:
    return [_notification(f"{rule.id} was skipped: {why}", "note", rule) for rule, why in report.skipped]


def _cut(report: Report) -> list[dict[str, Any]]:
    return [_notification(f"Not all was looked at: {why}", "warning") for why in report.cut]


def _unlisted(report: Report) -> list[dict[str, Any]]:
    counts = {rule: report.unlisted(rule) for rule in dict.fromkeys(rule for rule, _ in report.counts)}
    return [
        _notification(f"{count} more findings of {rule.id} are counted, not listed", "warning", rule)
        for rule, count in counts.items()
        if count
    ]


def _notification(text: str, level: str, rule: Rule | None = None) -> dict[str, Any]:
    told: dict[str, Any] = {"message": {"text": _sentence(text)}, "level": level}
    if rule is not None:
        told["associatedRule"] = {"id": rule.id}
    return told


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _hex(value: int | None) -> str | None:
    return None if value is None else f"0x{value:x}"
