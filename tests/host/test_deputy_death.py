"""We may be killed at any point of an attach: the target must not notice, and nothing of ours may stay."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sevkvm.host.deputy import Deputy
from tests.support.build import SANITIZERS, compile_program
from tests.support.victim import DEPUTY_SOURCES, Victim

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    out = tmp_path_factory.mktemp("programs")
    return compile_program("victim", out), compile_program("deputy_suicide", out, *DEPUTY_SOURCES)


@pytest.fixture(params=["poll", "sleep", "spin"])
def victim(request: pytest.FixtureRequest, programs: tuple[Path, Path]) -> Iterator[Victim]:
    victim = Victim(programs[0], request.param)
    yield victim
    victim.close()


def test_death_at_every_ptrace_request(victim: Victim, programs: tuple[Path, Path]) -> None:
    suicide = programs[1]
    with Deputy(victim.pid):
        pass
    before = victim.shape()
    survived = subprocess.run(
        [suicide, str(victim.pid), "0"], capture_output=True, text=True, timeout=30, check=True
    )
    checkpoints = int(survived.stdout)
    assert checkpoints > 100
    for last_wish in range(1, checkpoints + 1):
        died = subprocess.run([suicide, str(victim.pid), str(last_wish)], capture_output=True, timeout=30)
        assert died.returncode == -9, f"checkpoint {last_wish}: {died.stderr.decode()}"
        assert victim.process.poll() is None, f"the target died at checkpoint {last_wish}"
        victim.wait_for_threads(before[0])
        if last_wish % 10 == 0:
            victim.assert_well()
    victim.assert_well()
    with Deputy(victim.pid) as deputy:
        assert deputy.info().leftovers > 0
    victim.wait_for_threads(before[0])
    assert victim.shape() == before


def test_attach_and_leave_under_the_sanitizers(victim: Victim, tmp_path: Path) -> None:
    program = compile_program("deputy_suicide", tmp_path, *DEPUTY_SOURCES, flags=SANITIZERS)
    done = subprocess.run([program, str(victim.pid), "0"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    victim.assert_well()
