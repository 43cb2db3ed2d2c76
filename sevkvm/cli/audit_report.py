"""How ``sevkvm audit`` tells what it found: text for people, JSON for programs."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from sevkvm.abi.x86 import LEVEL_NAMES
from sevkvm.audit.rules import Severity
from sevkvm.cli.render import hexadecimal, printable, size

if TYPE_CHECKING:
    from sevkvm.audit.report import Finding, Place, Report
    from sevkvm.audit.rules import Rule
    from sevkvm.guest import Guest

_WIDTH = 110


def print_report(guest: Guest, report: Report) -> None:
    """Rule by rule, the worst first; then what was not asked or not looked at, and the sum as the last line."""
    for rule in dict.fromkeys(finding.rule for finding in report.findings):
        found = [finding for finding in report.findings if finding.rule is rule]
        click.echo(printable(f"{rule.id} {rule.name}"))
        for finding in found:
            for line in _lines(finding):
                click.echo(printable(line))
        if report.unlisted(rule):
            click.echo(f"  and {report.unlisted(rule)} more (--max-findings)")
        if any(finding.severity is not Severity.NOTE for finding in found):
            _paragraph("means: ", rule.meaning)
            _paragraph("do: ", rule.advice)
        click.echo("")
    reasons = dict.fromkeys(skipped.why for skipped in report.skipped)
    for why in reasons:
        ids = ", ".join(skipped.rule.id for skipped in report.skipped if skipped.why == why)
        click.echo(printable(f"skipped {ids}: {why}"))
    for why in report.cut:
        click.echo(printable(f"not looked at: {why}"))
    name = guest.name or f"pid {guest.pid}"
    counts = [_plural(report.total(severity), severity.value) for severity in Severity]
    click.echo(printable(f"{name}: {', '.join(counts)}"))


def _lines(finding: Finding) -> Iterator[str]:
    yield f"  {finding.severity.value}: {finding.message}"
    for place in finding.places:
        yield f"    {_where(place)}"
        if place.entries:
            entries = (f"{LEVEL_NAMES[each.level]} 0x{each.entry:016x}" for each in place.entries)
            yield f"      {', '.join(entries)}"
            last = place.entries[-1]
            yield f"      the last is entry {last.position} of the table at gpa 0x{last.table_gpa:x}"


def _where(place: Place) -> str:
    parts = []
    if place.gva is not None:
        parts.append(
            f"gva 0x{place.gva:016x}" + (f" to 0x{place.gva + place.nbytes:016x}" if place.nbytes else "")
        )
    if place.gpa is not None:
        parts.append(f"gpa 0x{place.gpa:x}")
    parts.append(size(place.nbytes))
    if place.roots:
        more = f" and {len(place.roots) - 1} more" if len(place.roots) > 1 else ""
        parts.append(f"root 0x{place.roots[0]:x}{more}")
    return ", ".join(parts)


def _paragraph(label: str, text: str) -> None:
    lines = textwrap.wrap(text, _WIDTH, initial_indent=f"  {label}", subsequent_indent="    ")
    click.echo("\n".join(lines))


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def print_rules(rules: Sequence[Rule]) -> None:
    """What each rule is about."""
    for rule in rules:
        click.echo(f"{rule.id} {rule.name} ({rule.severity.value}): {rule.title}")
        _paragraph("means: ", rule.meaning)
        _paragraph("do: ", rule.advice)


def rules_json(rules: Sequence[Rule]) -> list[dict[str, Any]]:
    """The array of ``--rules --json``."""
    return [
        {
            "rule": rule.id,
            "name": rule.name,
            "severity": rule.severity.value,
            "title": rule.title,
            "meaning": rule.meaning,
            "advice": rule.advice,
        }
        for rule in rules
    ]


def report_json(guest: Guest, report: Report) -> dict[str, Any]:
    """The object of ``--json``."""
    return {
        "pid": guest.pid,
        "vm_fd": guest.vm_fd,
        "name": guest.name,
        "sev": guest.sev.kind.value,
        "kernel": report.kernel,
        "roots": [hexadecimal(root) for root in report.roots],
        "complete": not report.cut,
        "cut": list(report.cut),
        "totals": {severity.value: report.total(severity) for severity in Severity},
        "counts": [
            {"rule": rule.id, "severity": severity.value, "count": count}
            for (rule, severity), count in sorted(report.counts.items())
        ],
        "findings": [_finding(finding) for finding in report.findings],
        "skipped": [{"rule": rule.id, "name": rule.name, "reason": why} for rule, why in report.skipped],
    }


def _finding(finding: Finding) -> dict[str, Any]:
    return {
        "rule": finding.rule.id,
        "name": finding.rule.name,
        "severity": finding.severity.value,
        "message": finding.message,
        "places": [_place(place) for place in finding.places],
        "vcpus": list(finding.vcpus),
    }


def _place(place: Place) -> dict[str, Any]:
    return {
        "gva": hexadecimal(place.gva),
        "gpa": hexadecimal(place.gpa),
        "size": place.nbytes,
        "roots": [hexadecimal(root) for root in place.roots],
        "entries": [
            {
                "level": each.level,
                "table": hexadecimal(each.table_gpa),
                "index": each.position,
                "entry": hexadecimal(each.entry),
            }
            for each in place.entries
        ],
    }
