"""The reports that scripts/hil brought back, read and told in one page; and whether all went well."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FAILED, CANNOT = 1, 3
_TAP = re.compile(r"(ok|not ok) \d+ - (\S+)(?: # SKIP (.*))?")
_SHOWN = 30  # failures, lines of the kernel log
_REASON_NCHARS = 200


@dataclass
class Cases:
    """Outcomes by number, reasons of skips by number, failures with their first line."""

    counts: Counter[str] = field(default_factory=Counter)
    skips: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[str, str]] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Something ran, and nothing failed."""
        return self.counts["passed"] > 0 and not self.failures

    def line(self) -> str:
        told = [f"{count} {what}" for what, count in self.counts.items() if count]
        return ", ".join(told) or "none ran"


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def read_junit(path: Path) -> Cases:
    cases = Cases()
    try:
        root = ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError):
        return cases
    for case in root.iter("testcase"):
        name = f"{case.get('classname', '')}::{case.get('name', '')}"
        found = next((each for each in case if each.tag in ("failure", "error", "skipped")), None)
        if found is None:
            cases.counts["passed"] += 1
            continue
        message = (found.get("message") or "").splitlines()[:1]
        if found.tag == "skipped":
            cases.counts["skipped"] += 1
            cases.skips[(message or ["?"])[0][:_REASON_NCHARS]] += 1
        else:
            cases.counts["failed"] += 1
            cases.failures.append((name, (message or ["?"])[0][:_REASON_NCHARS]))
    return cases


def read_tap(path: Path) -> Cases:
    cases = Cases()
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    for at, line in enumerate(lines):
        if line.startswith("Bail out!"):
            cases.failures.append(("conformance", line))
        if not (match := _TAP.fullmatch(line)):
            continue
        if match[3]:
            cases.counts["skipped"] += 1
            cases.skips[match[3]] += 1
        elif match[1] == "ok":
            cases.counts["passed"] += 1
        else:
            cases.counts["failed"] += 1
            told = " ".join(each.lstrip("# ") for each in lines[at + 1 : at + 3] if each.startswith("#"))
            cases.failures.append((match[2], told[:_REASON_NCHARS]))
    if lines and not cases.failures and not re.fullmatch(r"1\.\.\d+", lines[-1]):
        cases.failures.append(("conformance", "it did not come to its end"))
    return cases


def verdict(out: Path) -> int:
    """scripts/hil's exit status for what is in ``out``."""
    result = _json(out / "result.json") or {}
    if "facts" not in result:
        return CANNOT
    good = result["ended"] is None and all(step["ended"] is None for step in result["steps"])
    good = good and read_junit(out / "junit.xml").good and read_tap(out / "conformance.tap").good
    return 0 if good else FAILED


def _cases(title: str, cases: Cases) -> list[str]:
    lines = [f"## {title}", "", cases.line(), ""]
    if cases.failures:
        lines += [f"- **{name}**: {told}" for name, told in cases.failures[:_SHOWN]]
        more = len(cases.failures) - _SHOWN
        lines += [f"- and {more} more", ""] if more > 0 else [""]
    if cases.skips:
        lines += [
            "Skipped, and why:",
            "",
            *(f"- {count}: {why}" for why, count in cases.skips.most_common()),
            "",
        ]
    return lines


def _bench(rows: Any) -> list[str]:
    if not isinstance(rows, list):
        return []
    lines = ["## Benchmarks", "", "| | median | least | most | | |", "|---|---:|---:|---:|---|---|"]
    for row in rows:
        cells = ["" if row[key] is None else f"{row[key]:.2f}" for key in ("median", "least", "most")]
        lines.append(f"| {' | '.join([row['what'].strip(), *cells, row['unit'], row['note']])} |")
    return [*lines, ""]


def _doctor(doctor: Any) -> list[str]:
    checks = list(_walk(doctor)) if isinstance(doctor, dict) else []
    if not checks:
        return ["## Doctor", "", "It told nothing: see doctor.log.", ""]
    counts = Counter(result for result, _ in checks)
    lines = ["## Doctor", "", ", ".join(f"{count} {what}" for what, count in sorted(counts.items())), ""]
    lines += [f"- {result}: {told}" for result, told in checks if result not in ("pass", "skip")]
    return [*lines, ""]


def _walk(node: dict[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """(result, what it is about) of every check, of whatever depth."""
    for check in node["checks"]:
        name = f"{above}{check['name']}"
        yield check["result"], f"{name}: {check['detail']}" if check["detail"] else name
        yield from _walk(check, f"{name}, ")


def _tail(path: Path) -> list[str]:
    return path.read_text(errors="replace").splitlines()[-_SHOWN:] if path.exists() else []


def write_report(out: Path, host: str, shim: bool, write: bool) -> None:
    """report.md, of what else is in ``out``."""
    result = _json(out / "result.json") or {}
    facts = result.get("facts")
    on = (
        "a pretend SEV host (--shim): this says nothing about hardware"
        if shim
        else "the hardware of that host"
    )
    lines = [f"# sevkvm on {host}", "", f"Ran on {on}; {'with' if write else 'without'} --write.", ""]
    if facts:
        lines += [f"- {name}: {value}" for name, value in facts.items()]
    else:
        lines += ["**The host could not be set up.**"]
    if result.get("ended"):
        lines += ["", f"**It ended before its time: {result['ended']}.**"]
    lines += ["", "| step | status | seconds | |", "|---|---:|---:|---|"]
    for step in result.get("steps", ()):
        lines.append(f"| {step['name']} | {step['status']} | {step['seconds']} | {step['ended'] or ''} |")
    lines += [""]
    if facts:
        cases = read_junit(out / "junit.xml")
        lines += _cases("Tests", cases)
        if not cases.counts:
            lines += ["```", *_tail(out / "pytest.log"), "```", ""]
        lines += _cases("ioctl conformance", read_tap(out / "conformance.tap"))
        lines += _bench(_json(out / "bench.json"))
        lines += _doctor(_json(out / "doctor.json"))
    log = (out / "kernel.log").read_text().splitlines() if (out / "kernel.log").exists() else []
    lines += ["## Kernel log of the run", ""]
    if result.get("kernel_log"):
        lines += [f"Not readable by that user: {result['kernel_log']}."]
    else:
        lines += [f"{len(log)} lines" + (", the last of them:" if log else "."), ""]
        lines += ["```", *log[-_SHOWN:], "```"] if log else []
    left = result.get("left_over_processes", 0)
    lines += ["", f"Processes that had to be ended at the end: {left}. The directory there was removed.", ""]
    (out / "report.md").write_text("\n".join(lines))
