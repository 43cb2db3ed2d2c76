"""Dumps in parts, with checksums."""

from __future__ import annotations

import hashlib
import subprocess
import threading
from pathlib import Path

import pytest

from sevkvm import errors
from sevkvm.dump import DigestTarget, DumpFormat, DumpOptions, SplitTarget, dump_guest, prepare
from sevkvm.dump.digest import sha256sum_line
from sevkvm.dump.split import MAX_PARTS
from tests.support.fakeguest import PAGE, FakeGuest, UniformPages, pattern, vcpu_state

RAM = pattern(20 * PAGE) + bytes(30 * PAGE) + pattern(7 * PAGE, seed=3)


def dump(target, file_format=DumpFormat.RAW, **guest):
    options = DumpOptions(format=file_format)
    return dump_guest(FakeGuest({0: RAM}, **guest), options, UniformPages(), target)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.mark.parametrize("part_nbytes", [PAGE, 10_000, 100_000, 1 << 30])
@pytest.mark.parametrize("file_format", [DumpFormat.RAW, DumpFormat.ELF, DumpFormat.LIME, DumpFormat.KDUMP])
def test_the_parts_together_are_the_file(tmp_path, monkeypatch, part_nbytes, file_format):
    monkeypatch.setattr("time.time_ns", lambda: 0)
    guest = {"states": [vcpu_state(0)], "bad_pages": [3 * PAGE, 22 * PAGE]}
    dump(prepare(str(tmp_path / "whole")), file_format, **guest)
    target = SplitTarget(tmp_path / "core", part_nbytes, force=False)
    dump(target, file_format, **guest)
    whole = (tmp_path / "whole").read_bytes()
    assert names(tmp_path) == [*(path.name for path in target.paths), "whole"]
    parts = [path.read_bytes() for path in target.paths]
    assert {len(part) for part in parts[:-1]} <= {part_nbytes}
    assert 0 < len(parts[-1]) <= part_nbytes
    assert b"".join(parts) == whole


def test_zeros_are_sparse_in_the_parts_too(tmp_path):
    target = SplitTarget(tmp_path / "core", 8 * PAGE, force=False)
    dump(target)
    assert sum(path.stat().st_blocks * 512 for path in target.paths) <= 28 * PAGE


def test_a_failure_leaves_no_part(tmp_path):
    guest = FakeGuest({0: RAM})

    def refuse(gpa: int) -> None:
        if gpa >= 16 * PAGE:
            raise errors.FirmwareError("DBG_DECRYPT", 7, "POLICY_FAILURE")

    guest.memory.on_read = refuse
    target = SplitTarget(tmp_path / "core", 4 * PAGE, force=False)
    with pytest.raises(errors.FirmwareError):
        dump_guest(guest, DumpOptions(), UniformPages(), target)
    assert names(tmp_path) == []


def test_a_part_that_exists_is_refused_and_kept(tmp_path):
    (tmp_path / "core.000").write_bytes(b"precious")
    with pytest.raises(errors.UsageError, match="exists"):
        SplitTarget(tmp_path / "core", PAGE, force=False)
    assert (tmp_path / "core.000").read_bytes() == b"precious"


def test_parts_of_an_older_longer_dump_do_not_stay(tmp_path):
    dump(SplitTarget(tmp_path / "core", PAGE, force=False))
    assert len(names(tmp_path)) == 57
    dump(SplitTarget(tmp_path / "core", 50 * PAGE, force=True))
    assert names(tmp_path) == ["core.000", "core.001"]


@pytest.mark.parametrize("part_nbytes", [0, 57 * PAGE // MAX_PARTS])
def test_parts_too_small_are_refused(tmp_path, part_nbytes):
    with pytest.raises(errors.UsageError):
        dump(SplitTarget(tmp_path / "core", part_nbytes, force=False))
    assert names(tmp_path) == []


@pytest.mark.parametrize("file_format", DumpFormat)
@pytest.mark.parametrize("bad_pages", [[], [5 * PAGE]])
def test_the_digest_is_the_files(tmp_path, file_format, bad_pages):
    path = tmp_path / "core"
    target = DigestTarget(prepare(str(path)), path)
    dump(target, file_format, bad_pages=bad_pages)
    assert target.hexdigest() == hashlib.sha256(path.read_bytes()).hexdigest()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("dump-")]


@pytest.mark.parametrize("name", ["core", "a b", "back\\slash", "new\nline"])
def test_sha256sum_takes_the_line(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"abc")
    (tmp_path / "sums").write_text(sha256sum_line(hashlib.sha256(b"abc").hexdigest(), path))
    done = subprocess.run(["sha256sum", "-c", "sums"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_full_file_system_is_told_before_anything_is_read_unless_it_shall_not_matter(tmp_path, monkeypatch):
    class Full:
        f_bavail, f_frsize = 10, PAGE

    monkeypatch.setattr("os.statvfs", lambda path: Full)
    guest = FakeGuest({0: RAM})
    with pytest.raises(errors.SevKvmError, match="1 MiB are missing"):
        dump_guest(guest, DumpOptions(), UniformPages(), prepare(str(tmp_path / "core")))
    with pytest.raises(errors.SevKvmError, match="1 MiB are missing"):
        dump_guest(guest, DumpOptions(), UniformPages(), SplitTarget(tmp_path / "x", PAGE, force=False))
    assert guest.memory.reads == 0
    dump(prepare(str(tmp_path / "core"), check_space=False))
    dump(SplitTarget(tmp_path / "x", PAGE, force=False, check_space=False))
    assert (tmp_path / "core").stat().st_size == len(RAM)
