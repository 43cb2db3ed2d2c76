"""Rules of the house that import-linter cannot see."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "sevkvm"


def imported_names(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_only_native_touches_the_compiled_module() -> None:
    users = {path.name for path in PACKAGE.rglob("*.py") if "sevkvm._native" in imported_names(path)}
    assert users == {"native.py"}


def test_tests_are_in_a_tier() -> None:
    tiers = {path.relative_to(ROOT / "tests").parts[0] for path in (ROOT / "tests").rglob("test_*.py")}
    assert tiers <= {"unit", "host", "kvm", "sev", "fuzz"}


def test_every_c_source_has_its_header() -> None:
    sources = {path.stem for path in (ROOT / "csrc").glob("sk_*.c")}
    headers = {path.stem for path in (ROOT / "csrc").glob("sk_*.h")}
    assert sources <= headers


def test_a_command_on_a_vmm_imports_no_search_and_no_dump_reader() -> None:
    program = (
        "import sys, sevkvm.attach, sevkvm.attach.opening as o; o.open_guest; print('\\n'.join(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    unused = (
        "sevkvm.linux.find",
        "sevkvm.dumpfile",
        "sevkvm.attach.offline",
        "asyncio",
        "click",
        "rich",
        "hashlib",
    )
    assert "sevkvm.guest" in done.stdout.split()
    assert not set(unused) & set(done.stdout.split())


def test_extras_that_are_named_exist() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    section = project.partition("[project.optional-dependencies]\n")[2].partition("\n[")[0]
    extras = set(re.findall(r"^(\w+) = ", section, re.M))
    files = [
        *PACKAGE.rglob("*.py"),
        *(ROOT / "docs").rglob("*.md"),
        ROOT / "README.md",
        ROOT / "CHANGELOG.md",
    ]
    text = "\n".join(path.read_text() for path in files)
    named = set(",".join(re.findall(r"sevkvm\[([\w,]+)\]", text)).split(","))
    named |= set(re.findall(r"(?:the extra `?|\(extra: )(\w+)\b(?!\[)", text))
    assert {"dump", "yara", "remote"} <= named <= extras
