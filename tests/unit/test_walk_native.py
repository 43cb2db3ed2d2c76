"""The C decoder, tested from C alone: under the compilers at hand, with sanitizers."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.support.build import CSRC, TEST_CSRC

if TYPE_CHECKING:
    from pathlib import Path

SOURCES = ("sk_walk.c", "sk_scan.c", "sk_status.c")
WARNINGS = ("-std=gnu11", "-O2", "-g", "-Wall", "-Wextra", "-Werror", f"-I{CSRC}")
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")


def build(compiler: str, program: Path, flags: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    files = [str(TEST_CSRC / "test_walk.c"), *(str(CSRC / source) for source in SOURCES)]
    command = [compiler, *WARNINGS, *flags, "-o", str(program), *files]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
@pytest.mark.parametrize("flags", [(), SANITIZERS], ids=["plain", "sanitized"])
def test_c_decoder(compiler: str, flags: tuple[str, ...], tmp_path: Path) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    if flags and not has_sanitizers(compiler, tmp_path):
        pytest.skip(f"{compiler} cannot link the address and undefined-behaviour sanitizers")
    program = tmp_path / "test_walk"
    built = build(compiler, program, flags)
    assert built.returncode == 0, built.stderr
    # leak detection attaches with ptrace, which a test runner's own tracer would forbid
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
    ran = subprocess.run([program], capture_output=True, text=True, timeout=120, check=False, env=environment)
    assert ran.returncode == 0, ran.stderr


def has_sanitizers(compiler: str, tmp_path: Path) -> bool:
    empty = tmp_path / "empty.c"
    empty.write_text("int main(void) { return 0; }\n")
    command = [compiler, *SANITIZERS, "-o", str(tmp_path / "empty"), str(empty)]
    return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0
