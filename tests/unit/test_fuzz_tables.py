"""The inputs that fuzzing kept (tests/fuzz/corpus) and the shapes it began with, as ordinary tests under sanitizers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.build import CSRC, ROOT, SANITIZERS, require_compiler

FUZZ = ROOT / "tests" / "fuzz"
CORPUS = FUZZ / "corpus" / "tables"
SOURCES = (
    "sk_list.c",
    "sk_cache.c",
    "sk_summary.c",
    "sk_space.c",
    "sk_rights.c",
    "sk_emit.c",
    "sk_line.c",
    "sk_scan.c",
    "sk_walk.c",
    "sk_status.c",
)


@pytest.fixture(scope="module")
def replay(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("fuzz") / "replay"
    sources = [FUZZ / "replay.c", FUZZ / "fuzz_tables.c", *(CSRC / source for source in SOURCES)]
    flags = ("-std=gnu11", "-O2", "-g", "-Wall", "-Wextra", "-Werror", f"-I{CSRC}", *SANITIZERS)
    subprocess.run([require_compiler(), *flags, "-o", program, *sources], check=True, timeout=120)
    return program


def run(replay: Path, inputs: list[Path]) -> None:
    assert inputs
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
    done = subprocess.run(
        [replay, *inputs], capture_output=True, text=True, timeout=120, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == f"{len(inputs)} inputs\n"


def test_what_fuzzing_kept(replay: Path) -> None:
    run(replay, sorted(CORPUS.iterdir()))


def test_shapes_that_fuzzing_begins_with(replay: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, FUZZ / "seeds.py", tmp_path], check=True, timeout=60)
    run(replay, sorted(tmp_path.iterdir()))
