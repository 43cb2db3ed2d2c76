"""The readers, run as a user runs them; a skip that says why where one is not installed."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SYSTEM_PYTHON = "/usr/bin/python3"  # Debian's python3-libkdumpfile is its
HERE = Path(__file__).parent


class ReaderFailed(Exception):
    """A reader ended badly; its last words."""


def run(*argv: str | Path, seconds: int = 120, cwd: Path | None = None) -> str:
    """A program's stdout and stderr, in this order; ReaderFailed where its exit status is not 0."""
    done = subprocess.run(
        [str(word) for word in argv],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=seconds,
        stdin=subprocess.DEVNULL,
        check=False,
        cwd=cwd,
    )
    if done.returncode:
        raise ReaderFailed(done.stderr[-2000:] + done.stdout[-2000:])
    return done.stdout + done.stderr


def require_program(name: str, package: str) -> str:
    """Its path."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} not found (Debian: apt install {package})")
    return found


def require_module(name: str) -> str:
    """The command of a reader from PyPI, in the environment that runs the tests."""
    command = {"drgn": "drgn", "volatility3": "vol"}[name]
    path = Path(sys.executable).with_name(command)
    if importlib.util.find_spec(name) is None or not path.exists():
        pytest.skip(f"no {name} (pip install {name})")
    return str(path)


def require_libkdumpfile() -> str:
    """The Python that has Debian's binding of it."""
    if not Path(SYSTEM_PYTHON).exists():
        pytest.skip(f"no {SYSTEM_PYTHON}")
    done = subprocess.run(
        [SYSTEM_PYTHON, "-c", "import kdumpfile"], capture_output=True, timeout=60, check=False
    )
    if done.returncode:
        pytest.skip("no kdumpfile (Debian: apt install python3-libkdumpfile)")
    return SYSTEM_PYTHON
