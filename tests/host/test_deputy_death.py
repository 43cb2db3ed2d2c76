"""We may be killed at any point of an attach: the target must not notice, and nothing of ours may stay."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sevkvm.host.deputy import Deputy
from tests.support.build import compile_program

pytestmark = pytest.mark.host

DEPUTY_SOURCES = (
    "sk_area.c",
    "sk_borrow.c",
    "sk_deputy.c",
    "sk_gadget.c",
    "sk_hold.c",
    "sk_status.c",
    "sk_tasks.c",
    "sk_xfer.c",
)


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    out = tmp_path_factory.mktemp("programs")
    return compile_program("victim", out), compile_program("deputy_suicide", out, *DEPUTY_SOURCES)


class Victim:
    def __init__(self, program: Path, mode: str) -> None:
        self.process = subprocess.Popen(
            [program, mode], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self.pid = self.process.pid
        self.ask()

    def ask(self) -> tuple[int, int]:
        """(rounds done, surprises seen): proves that two of its threads run."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write("\n")
        rounds, surprises = self.process.stdout.readline().split()
        return int(rounds), int(surprises)

    def assert_well(self) -> None:
        before, _ = self.ask()
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            rounds, surprises = self.ask()
            assert surprises == 0
            if rounds > before:
                return
            time.sleep(0.002)
        pytest.fail("the main thread stands still")

    def shape(self) -> tuple[int, int, list[str]]:
        """Threads, descriptors and mappings (heap and stack may grow by themselves)."""
        proc = Path(f"/proc/{self.pid}")
        maps = [line.split(maxsplit=1)[1] for line in (proc / "maps").read_text().splitlines()]
        return len(list((proc / "task").iterdir())), len(list((proc / "fd").iterdir())), maps


@pytest.fixture(params=["poll", "sleep", "spin"])
def victim(request: pytest.FixtureRequest, programs: tuple[Path, Path]) -> Iterator[Victim]:
    victim = Victim(programs[0], request.param)
    yield victim
    victim.process.kill()
    victim.process.wait(10)


def wait_for_threads(victim: Victim, count: int) -> None:
    deadline = time.monotonic() + 5
    while victim.shape()[0] != count:
        assert time.monotonic() < deadline, f"{victim.shape()[0]} threads instead of {count}"
        time.sleep(0.001)


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
        wait_for_threads(victim, before[0])
        if last_wish % 10 == 0:
            victim.assert_well()
    victim.assert_well()
    with Deputy(victim.pid) as deputy:
        assert deputy.info().leftovers > 0
    wait_for_threads(victim, before[0])
    assert victim.shape() == before
