"""What every test run needs and prints: signals as in a terminal; how each tier fared, and why one did not run."""

from __future__ import annotations

import signal
from collections import Counter, defaultdict
from pathlib import PurePath
from typing import Any

import pytest

TIERS = ("unit", "host", "kvm", "sev")
_OUTCOMES = ("passed", "failed", "error", "skipped", "xfailed", "xpassed")


def pytest_configure() -> None:
    """Signals do what they do in a terminal: a job in the background starts with some ignored, and hands that on."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


def _tier(nodeid: str) -> str:
    parts = PurePath(nodeid.partition("::")[0]).parts
    return parts[1] if len(parts) > 2 and parts[0] == "tests" else "other"


def _skip_reason(report: Any) -> str:
    longrepr = report.longrepr
    text = longrepr[2] if isinstance(longrepr, tuple) else str(longrepr)
    return str(text).removeprefix("Skipped: ")


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: Any) -> None:
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    reasons: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for outcome in _OUTCOMES:
        for report in terminalreporter.stats.get(outcome, []):
            tier = _tier(report.nodeid)
            counts[tier][outcome] += 1
            if outcome == "skipped":
                reasons[tier][_skip_reason(report)] += 1
    terminalreporter.ensure_newline()
    terminalreporter.section("tiers")
    for tier in (*TIERS, *sorted(counts.keys() - set(TIERS))):
        told = ", ".join(f"{counts[tier][each]} {each}" for each in _OUTCOMES if counts[tier][each])
        terminalreporter.write_line(f"{tier:6} {told or 'nothing selected'}")
        for reason, count in reasons[tier].most_common():
            terminalreporter.write_line(f"       {count} skipped: {reason}")
