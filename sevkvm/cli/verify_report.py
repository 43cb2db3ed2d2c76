"""How ``sevkvm verify`` tells what it found: a tree for people, JSON for pipelines."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from sevkvm.cli.render import hexadecimal, printable
from sevkvm.verify.noise import FALSE_ALARM
from sevkvm.verify.report import Outcome

if TYPE_CHECKING:
    from sevkvm.guest import Guest
    from sevkvm.verify.page import PageFinding
    from sevkvm.verify.report import Check, Report

_SHOWN_PAGES = 4
_ORDER = (Outcome.FAIL, Outcome.SKIP, Outcome.PASS)


def print_report(guest: Guest, report: Report, passed: bool, *, strict: bool) -> None:
    """The tree, and the verdict as its last line."""
    for group in report.groups:
        _line(group.outcome, 0, group.title)
        for check in group.checks:
            told = f": {'; '.join(check.evidence)}" if check.evidence else ""
            _line(check.outcome, 1, f"{check.title}{told}")
            # failures first: they are why somebody reads this
            pages = sorted(check.pages, key=lambda page: _ORDER.index(page.outcome))
            for page in pages[:_SHOWN_PAGES]:
                _line(page.outcome, 2, f"gpa 0x{page.gpa:x} ({page.what}): {page.reason}")
            if len(pages) > _SHOWN_PAGES:
                click.echo(f"{'':13}  and {len(pages) - _SHOWN_PAGES} more pages; --json lists all")
    click.echo(
        f"{guest.name or 'guest'}, pid {guest.pid}: " + ("verified" if passed else _why(report, strict))
    )


def _line(outcome: Outcome, depth: int, text: str) -> None:
    click.echo(printable(f"[ {outcome.value.upper()} ] {'  ' * depth}- {text}"))


def _why(report: Report, strict: bool) -> str:
    failed = [check.id for check in report.checks() if check.outcome is Outcome.FAIL]
    missing = [
        check.id for check in report.checks() if check.outcome is Outcome.SKIP and (check.required or strict)
    ]
    told = [f"failed {', '.join(dict.fromkeys(failed))}"] if failed else []
    told += [f"not shown {', '.join(dict.fromkeys(missing))}"] if missing else []
    return "NOT VERIFIED: " + "; ".join(told)


def report_json(guest: Guest, report: Report, passed: bool, *, strict: bool) -> dict[str, Any]:
    """The object of ``--json``."""
    policy = guest.sev.policy
    return {
        "pid": guest.pid,
        "vm_fd": guest.vm_fd,
        "name": guest.name,
        "sev": guest.sev.kind.value,
        "policy": hexadecimal(policy.value) if policy else None,
        "verified": passed,
        "strict": strict,
        "false_alarm": FALSE_ALARM,
        "checks": list(_checks(report)),
    }


def _checks(report: Report) -> Iterator[dict[str, Any]]:
    for group in report.groups:
        for check in group.checks:
            yield {"group": group.title, **_check(check)}


def _check(check: Check) -> dict[str, Any]:
    return {
        "id": check.id,
        "title": check.title,
        "outcome": check.outcome.value,
        "required": check.required,
        "evidence": list(check.evidence),
        "pages": [_page(page) for page in check.pages],
    }


def _page(page: PageFinding) -> dict[str, Any]:
    host = page.host
    return {
        "gpa": hexadecimal(page.gpa),
        "what": page.what,
        "outcome": page.outcome.value,
        "reason": page.reason,
        "noise": host.is_noise if host else None,
        "entropy": round(host.entropy, 4) if host else None,
        "chi_square": round(host.chi_square, 1) if host else None,
        "most_frequent": host.most if host else None,
        "repeated_blocks": host.repeated if host else None,
    }
