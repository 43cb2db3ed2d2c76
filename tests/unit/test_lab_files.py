from __future__ import annotations

import os
import select
import stat
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE

import pytest

from sevkvm.lab.files import cache_directory, copy_sparse, mapped, prune, publish, write_private
from tests.support.build import ROOT


def test_the_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_directory() == tmp_path / "sevkvm"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # the specification wants it ignored
    assert cache_directory() == tmp_path / ".cache/sevkvm"


def test_a_file_is_private_and_alone(tmp_path: Path) -> None:
    path = write_private(tmp_path / "a", b"data")
    assert path.read_bytes() == b"data"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_directory_appears_when_it_is_complete(tmp_path: Path) -> None:
    final = tmp_path / "final"
    with publish(final) as directory:
        (directory / "a").touch()
        assert not final.exists()
    assert [path.name for path in final.iterdir()] == ["a"]
    assert list(tmp_path.iterdir()) == [final]


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with publish(tmp_path / "final") as directory:
            (directory / "a").touch()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_whoever_was_faster_wins(tmp_path: Path) -> None:
    final = tmp_path / "final"
    with publish(final) as slow:
        (slow / "slow").touch()
        with publish(final) as fast:
            (fast / "fast").touch()
    assert [path.name for path in final.iterdir()] == ["fast"]
    assert list(tmp_path.iterdir()) == [final]


def test_holes_stay_holes(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    with source.open("wb") as file:
        file.write(b"first")
        file.seek(8 << 20)
        file.write(b"middle")
        file.truncate(32 << 20)
    copy_sparse(source, target)
    assert target.read_bytes() == source.read_bytes()
    assert target.stat().st_blocks * 512 <= source.stat().st_blocks * 512 < 1 << 20
    assert stat.S_IMODE(target.stat().st_mode) == 0o600


def test_a_mapping_writes_only_if_asked(tmp_path: Path) -> None:
    path = write_private(tmp_path / "a", bytes(4096))
    assert mapped(path).readonly
    mapped(path, writable=True)[:2] = b"hi"
    assert path.read_bytes()[:3] == b"hi\0"


def test_only_what_nobody_used_is_pruned(tmp_path: Path) -> None:
    for name in ("linux-old", "linux-new", "other-old"):
        (tmp_path / name).mkdir()
        if name.endswith("old"):
            os.utime(tmp_path / name, (0, 0))
    prune(tmp_path, "linux-*", 3600)
    assert {path.name for path in tmp_path.iterdir()} == {"linux-new", "other-old"}


def test_one_at_a_time(tmp_path: Path) -> None:
    """Another process waits; one that dies in the middle keeps nobody waiting."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom sevkvm.lab.files import one_at_a_time\n"
        f"with one_at_a_time(Path({str(tmp_path / 'made')!r})):\n    print('in', flush=True)\n    sys.stdin.read()\n"
    )
    first, second = (
        subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=PIPE, stdout=PIPE, text=True)
        for _ in range(2)
    )
    inside = {first.stdout: first, second.stdout: second}
    try:
        (ready,), _, _ = select.select(list(inside), [], [], 30)
        assert ready.readline() == "in\n"
        (other,) = inside.keys() - {ready}
        assert select.select([other], [], [], 0.3)[0] == []
        inside[ready].kill()
        assert select.select([other], [], [], 30)[0] == [other]
        assert other.readline() == "in\n"
    finally:
        for process in inside.values():
            process.kill()
            process.communicate(timeout=10)
