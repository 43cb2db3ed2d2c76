"""Boots that fail: clear errors, no QEMU and no half-made cache left."""

from __future__ import annotations

from pathlib import Path

import pytest

from sevkvm.errors import ProtocolError, SevKvmError, TargetTimeout
from sevkvm.lab.debian import LabUnavailable, find_busybox, find_kernel
from sevkvm.lab.files import cache_directory
from sevkvm.lab.linux import plain_linux, silent
from tests.support.qemu import PROGRAM, require_qemu

pytestmark = pytest.mark.kvm


def users_of(cache: Path) -> list[str]:
    """Processes whose command line names the directory, by pid."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(cache).encode() in path.read_bytes():
                found.append(path.parent.name)
        except OSError:
            continue  # it ended
    return found


@pytest.fixture
def kernel() -> Path:
    require_qemu()
    cache = cache_directory()
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        find_busybox(cache, silent)
        return find_kernel(cache, silent)
    except LabUnavailable as error:
        pytest.skip(f"{error} ({error.help})")


def assert_fails(error: type[SevKvmError], match: str, cache: Path, kernel: Path, seconds: float) -> None:
    with pytest.raises(error, match=match):
        plain_linux(cache=cache, kernel=kernel, seconds=seconds)
    assert users_of(cache) == []
    assert list(cache.iterdir()) == []


def test_a_boot_that_takes_too_long(kernel: Path, tmp_path: Path) -> None:
    assert_fails(TargetTimeout, "did not say 'sevkvm-ready' in time", tmp_path, kernel, 0.2)


@pytest.mark.usefixtures("kernel")
def test_a_kernel_that_is_none(tmp_path: Path) -> None:
    garbage = tmp_path / "vmlinuz"
    garbage.write_bytes(b"no kernel")
    (tmp_path / "cache").mkdir()
    assert_fails(ProtocolError, "ended before it said", tmp_path / "cache", garbage, 60)


def test_no_emulator(kernel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert_fails(LabUnavailable, f"{PROGRAM} not found", tmp_path, kernel, 60)
