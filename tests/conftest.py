"""What every test run needs and prints: signals as in a terminal; how each tier fared, and why one did not run."""

from __future__ import annotations

import os
import signal
from collections import Counter, defaultdict
from pathlib import PurePath
from typing import Any

import pytest

from sevkvm.shim import hardware
from tests.support.sevhost import NO_WRITE

TIERS = ("unit", "host", "kvm", "sev")
_OUTCOMES = ("passed", "failed", "error", "skipped", "xfailed", "xpassed")


def pytest_addoption(parser: pytest.Parser) -> None:
    """The two switches of a run on hardware."""
    group = parser.getgroup("sevkvm")
    group.addoption(
        "--hardware",
        action="store_true",
        help=f"run the sev tier on this machine's /dev/sev, not on a pretend host (or {hardware.SWITCH}=1)",
    )
    group.addoption(
        "--hardware-write",
        action="store_true",
        help=f"and let it write to the guests that it launches there (or {hardware.WRITE_SWITCH}=1)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """The switches as subprocesses and fixtures see them; signals as in a terminal."""
    for option, variable in (("hardware", hardware.SWITCH), ("hardware_write", hardware.WRITE_SWITCH)):
        if config.getoption(option):
            os.environ[variable] = "1"
    _signals_as_in_a_terminal()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """On hardware: skip what it cannot do, or may not, with the reason."""
    if not hardware.wanted():
        return
    unavailable = hardware.why_unavailable()
    for item in items:
        if item.get_closest_marker("sev") and (reason := unavailable or _why_not_on_hardware(item)):
            item.add_marker(pytest.mark.skip(reason=reason))


def _why_not_on_hardware(item: pytest.Item) -> str | None:
    if pretended := item.get_closest_marker("pretended"):
        return str(pretended.args[0])
    return NO_WRITE if item.get_closest_marker("sev_write") and not hardware.may_write() else None


def _signals_as_in_a_terminal() -> None:
    """A job in the background starts with some ignored, and hands that on."""
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
