"""Compile the C programs of tests/csrc, once a session and only when somebody needs one."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")
TEST_CSRC = ROOT / "tests" / "csrc"


def require_compiler() -> str:
    """A C compiler; skip, saying so, where there is none."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler (cc, gcc) to build the test program with")
    return compiler


def compile_program(
    name: str, out_dir: Path, *sources: str, flags: Sequence[str] = (), compiler: str | None = None
) -> Path:
    """Compile tests/csrc/NAME.c with sources of csrc/; skip, saying so, where there is no compiler."""
    compiler = compiler or require_compiler()
    program = out_dir / name
    subprocess.run(
        [
            compiler,
            "-std=gnu11",
            "-O2",
            "-g",
            "-Wall",
            "-Wextra",
            "-Werror",
            f"-I{CSRC}",
            "-pthread",
            *flags,
            "-o",
            program,
        ]
        + [TEST_CSRC / f"{name}.c"]
        + [CSRC / source for source in sources],
        check=True,
        timeout=120,
    )
    return program
