"""Changing an argument of somebody's system call, in C and without a pretend SEV host around it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.build import compile_program
from tests.support.sevhost import require_notification

pytestmark = pytest.mark.host

SOURCES = ("sk_retype.c", "sk_notify.c", "sk_tasks.c", "sk_status.c")
NOBODY = "65534"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_notification()
    return compile_program("retype_death", tmp_path_factory.mktemp("retype"), *SOURCES)


def run(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_an_argument_is_changed_and_put_back_whoever_dies(program: Path) -> None:
    run(program)


def test_an_ordinary_user_may_do_it_to_a_child(program: Path, tmp_path: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("the other test has run as an ordinary user already")
    if shutil.which("setpriv") is None:
        pytest.skip("no setpriv to become an ordinary user with")
    # one who may read where pytest keeps it, which is root's
    keep = "+dac_read_search"
    run(
        *(
            "setpriv",
            f"--reuid={NOBODY}",
            f"--regid={NOBODY}",
            "--clear-groups",
            f"--bounding-set=-all,{keep}",
        ),
        *(f"--inh-caps=-all,{keep}", f"--ambient-caps={keep}", program),
    )
