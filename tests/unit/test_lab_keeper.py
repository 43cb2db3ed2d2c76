from __future__ import annotations

import os
import platform
import select
import subprocess
import sys
from pathlib import Path

import pytest

from sevkvm.lab.keeper import SECRET_GVA, SECRET_NBYTES, Keeper


def test_secrets_differ_and_are_not_in_the_file() -> None:
    keepers = [Keeper("alpha"), Keeper("bravo")]
    assert len({keeper.secret for keeper in keepers}) == 2
    for keeper in keepers:
        assert len(keeper.secret) == SECRET_NBYTES
        assert keeper.secret[:16] not in keeper.program()


@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="an x86-64 Linux program"
)
def test_the_program_runs_here_too_and_keeps_its_secret(tmp_path: Path) -> None:
    keeper = Keeper("delta")
    path = tmp_path / "keeper"
    path.write_bytes(keeper.program())
    path.chmod(0o700)
    process = subprocess.Popen([str(path)], stdout=subprocess.PIPE)
    try:
        assert process.stdout
        assert select.select([process.stdout], [], [], 10)[0]
        assert os.read(process.stdout.fileno(), 4096) == keeper.message
        with open(f"/proc/{process.pid}/mem", "rb", buffering=0) as memory:
            assert os.pread(memory.fileno(), SECRET_NBYTES, SECRET_GVA) == keeper.secret
        assert process.poll() is None  # it sleeps
    finally:
        process.kill()
        process.wait(10)
        if process.stdout:
            process.stdout.close()
