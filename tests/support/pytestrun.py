"""pytest in a process of its own, and what its JUnit XML says of each case."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.build import ROOT

_SECONDS = 240.0


@dataclass
class Outcomes:
    """Names of cases; skipped ones with their reasons."""

    passed: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)


def read_junit(path: Path) -> Outcomes:
    """By name and parameters, with the module in front."""
    found = Outcomes()
    for case in ElementTree.parse(path).getroot().iter("testcase"):
        name = f"{(case.get('classname') or '').rpartition('.')[2]}::{case.get('name')}"
        ends = {child.tag: child.get("message") or "" for child in case}
        if ends.keys() & {"failure", "error"}:
            found.failed.append(name)
        elif "skipped" in ends:
            found.skipped[name] = ends["skipped"]
        else:
            found.passed.append(name)
    return found


def run_pytest(
    directory: Path,
    *arguments: str,
    cwd: Path = ROOT,
    popen: Callable[..., Any] = subprocess.Popen,
    prefix: Sequence[str] = (),
    **environment: str,
) -> Outcomes:
    """Run it in ``cwd``; ``prefix`` are words before the command line. AssertionError if it could not run tests."""
    junit = directory / "junit.xml"
    argv = [
        *prefix,
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        f"--junitxml={junit}",
        *arguments,
    ]
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTEST_", "SEVKVM_HARDWARE"))
    }
    process = popen(
        argv,
        cwd=cwd,
        env=inherited | {"PYTHONPATH": str(ROOT)} | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    said, _ = process.communicate(timeout=_SECONDS)
    assert process.returncode in (0, 1), said
    return read_junit(junit)
