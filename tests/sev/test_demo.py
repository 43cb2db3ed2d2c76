"""scripts/demo-tour passes on the pretend host, and does not when an answer is wrong."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.sev, pytest.mark.pretended("the demonstration brings its own pretend host")]


def tour(directory: Path, sevkvm: str) -> subprocess.CompletedProcess[str]:
    """Run it with a program ``sevkvm`` whose shell text is given."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash")
    for name, text in {"sevkvm": sevkvm, "python": f'exec {sys.executable} "$@"'}.items():
        (directory / name).write_text(f"#!{bash}\n{text}\n")
        (directory / name).chmod(0o755)
    path = f"{directory}:{os.environ['PATH']}"
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "sevkvm",
            "shim",
            "--kvm",
            "standin",
            "--",
            bash,
            str(ROOT / "scripts/demo-tour"),
        ],
        env=os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "TMPDIR": str(directory)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )


HONEST = f'exec {sys.executable} -m sevkvm "$@"'


def test_the_tour_ends_well_and_leaves_nothing(tmp_path: Path) -> None:
    done = tour(tmp_path, HONEST)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("checked: ") == 7
    assert {path.name for path in tmp_path.iterdir()} == {"sevkvm", "python"}


def test_a_wrong_byte_is_noticed(tmp_path: Path) -> None:
    liar = f'[ "$1" != x ] || {{ {sys.executable} -m sevkvm "$@" | sed s/0x73/0x74/; exit; }}\n{HONEST}'
    done = tour(tmp_path, liar)
    assert done.returncode == 1, done.stdout
    assert done.stdout.count("DIFFERS: ") == 1


def test_a_dump_that_differs_is_noticed(tmp_path: Path) -> None:
    liar = (
        f"{HONEST.removeprefix('exec ')}; status=$?\n"
        'if [ "$1" = dump ]; then printf X | dd of="${!#}" bs=1 seek=5000 conv=notrunc status=none; fi\n'
        "exit $status"
    )
    # the lab must stay this very process
    done = tour(tmp_path, f'[ "$1" = dump ] || {HONEST}\n{liar}')
    assert done.returncode == 1, done.stdout
    assert "DIFFERS: SHA-256 of the dump" in done.stdout
