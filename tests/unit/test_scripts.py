"""How scripts/test and scripts/demo find what they need, or say what is missing."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BASH = shutil.which("bash") or pytest.skip("no bash", allow_module_level=True)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A PATH with what the library itself uses, and no Python."""
    for name in ("mktemp", "rm", "id", "tail"):
        found = shutil.which(name)
        assert found
        (tmp_path / name).symlink_to(found)
    return tmp_path


def fake_python(path: Path, name: str, *, new_enough: bool) -> None:
    (path / name).write_text(f"#!{BASH}\nexit {0 if new_enough else 1}\n")
    (path / name).chmod(0o755)


def library(path: Path, command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [BASH, "-c", f". scripts/lib.sh; {command}"],
        cwd=ROOT,
        env={"PATH": str(path)},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_an_old_python3_is_passed_over_for_the_newest_numbered_one(path: Path) -> None:
    fake_python(path, "python3", new_enough=False)
    fake_python(path, "python3.11", new_enough=True)
    fake_python(path, "python3.12", new_enough=True)
    assert library(path, "find_python").stdout == f"{path}/python3.12\n"


def test_a_python3_that_will_do_comes_first(path: Path) -> None:
    fake_python(path, "python3", new_enough=True)
    fake_python(path, "python3.13", new_enough=True)
    assert library(path, "find_python").stdout == f"{path}/python3\n"


def test_this_python_is_usable(path: Path) -> None:
    assert library(path, f"usable_python {sys.executable}").returncode == 0


def test_without_python_and_apt_the_message_names_what_is_missing(path: Path) -> None:
    done = library(path, "ensure_build_tools")
    assert done.returncode == 1
    assert "no Python >= 3.10 found" in done.stderr
    assert "apt-get cannot be used here" in done.stderr


def test_the_test_command_tells_how_it_is_used() -> None:
    done = subprocess.run(
        [BASH, "scripts/test", "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0
    assert "scripts/test [--no-check] [--no-apt]" in done.stdout
    assert "set -u" not in done.stdout
