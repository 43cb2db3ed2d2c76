"""The conformance suite of tests/csrc: its rows by name, and what a run of it said."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.build import TEST_CSRC, compile_program

_SOURCES = sorted((TEST_CSRC / "conformance").glob("*.c"))
_ROW = re.compile(r'^\tROW\("([^"]+)", ([A-Z_| ]+),', re.MULTILINE)
_LINE = re.compile(r"(ok|not ok) \d+ - (\S+)(?: # SKIP (.*))?")
_RUN_SECONDS = 250


def rows(generation: str) -> list[str]:
    """The names of the rows of one generation, in no particular order, as the sources have them."""
    found = [match for source in _SOURCES for match in _ROW.findall(source.read_text())]
    return [name for name, when in found if "ON_ANY" in when or f"ON_{generation.upper()}" in when]


def build(out_dir: Path) -> Path:
    """The program; skips where there is no compiler."""
    return compile_program("sev_conformance", out_dir, *map(str, _SOURCES))


@dataclass(frozen=True)
class Verdict:
    """How a row ended: ``skipped`` is the reason, ``told`` what was said about a failure."""

    ok: bool
    skipped: str | None
    told: str


def run(program: Path, *arguments: str, popen: Callable[..., Any] = subprocess.Popen) -> dict[str, Verdict]:
    """Run it (``popen`` starts it where it is to run) and read its TAP."""
    process = popen([program, *arguments], stdout=subprocess.PIPE, text=True)
    try:
        out, _ = process.communicate(timeout=_RUN_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    verdicts: dict[str, Verdict] = {}
    lines = out.splitlines()
    for index, line in enumerate(lines):
        if match := _LINE.fullmatch(line):
            told = [each for each in lines[index + 1 : index + 3] if each.startswith("#")]
            verdicts[match[2]] = Verdict(match[1] == "ok", match[3], "\n".join(told))
    assert lines[-1] == f"1..{len(verdicts)}", out
    assert process.returncode == (0 if all(each.ok for each in verdicts.values()) else 1)
    return verdicts


def generation(program: Path) -> str:
    """What the kernel of this host is taken for: "new" or "old"."""
    done = subprocess.run(
        [program, "--only", "order.null"], stdout=subprocess.PIPE, text=True, timeout=30, check=True
    )
    return done.stdout.splitlines()[0].removeprefix("# generation: ")
