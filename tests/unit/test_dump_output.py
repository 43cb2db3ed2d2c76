"""Dump targets: refusals before anything exists, nothing left behind, clear errors."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from sevkvm import errors
from sevkvm.dump import output
from sevkvm.dump.output import StreamTarget, prepare
from sevkvm.dump.sink import FdSink

MIB = 1 << 20


def write_and_raise(path: Path, exception: type[BaseException]) -> None:
    with prepare(str(path), force=True).open(1) as sink:
        sink.write(b"new")
        raise exception


def test_the_file_appears_complete_private_and_only_at_the_end(tmp_path):
    path = tmp_path / "core"
    old = os.umask(0)
    try:
        with prepare(str(path)).open(MIB) as sink:
            sink.write(b"abc")
            assert not path.exists()
            (temporary,) = tmp_path.iterdir()
            assert stat.S_IMODE(temporary.stat().st_mode) == 0o600
    finally:
        os.umask(old)
    assert [p.name for p in tmp_path.iterdir()] == ["core"]
    assert path.read_bytes() == b"abc"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("exception", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_any_exception_leaves_nothing(tmp_path, exception):
    with pytest.raises(exception):
        write_and_raise(tmp_path / "core", exception)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_refused_before_anything_is_opened(tmp_path):
    path = tmp_path / "core"
    path.write_bytes(b"precious")
    with pytest.raises(errors.UsageError, match="exists") as caught:
        prepare(str(path))
    assert caught.value.help is not None
    assert "--force" in caught.value.help
    assert path.read_bytes() == b"precious"


def test_a_dangling_link_is_not_followed(tmp_path):
    link = tmp_path / "core"
    link.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(errors.UsageError, match="exists"):
        prepare(str(link))


def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path):
    path = tmp_path / "core"
    with pytest.raises(errors.UsageError, match="exists"), prepare(str(path)).open(1):
        path.write_bytes(b"precious")
    assert path.read_bytes() == b"precious"
    assert list(tmp_path.iterdir()) == [path]


def test_force_replaces_at_the_end_and_keeps_the_old_file_on_failure(tmp_path):
    path = tmp_path / "core"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError):
        write_and_raise(path, RuntimeError)
    assert path.read_bytes() == b"old"
    with prepare(str(path), force=True).open(1) as sink:
        sink.write(b"new")
    assert path.read_bytes() == b"new"


def test_a_directory_is_refused(tmp_path):
    with pytest.raises(errors.UsageError, match="not a regular file"):
        prepare(str(tmp_path), force=True)


def test_a_missing_directory_is_refused(tmp_path):
    with pytest.raises(errors.UsageError, match="not a directory"):
        prepare(str(tmp_path / "no" / "core"))


def test_a_terminal_is_refused(monkeypatch):
    master, slave = os.openpty()
    saved = os.dup(1)
    os.dup2(slave, 1)
    try:
        with pytest.raises(errors.UsageError, match="terminal"):
            prepare("-")
    finally:
        os.dup2(saved, 1)
        for fd in (master, slave, saved):
            os.close(fd)


def test_too_little_space_is_told_before_anything_is_written(tmp_path):
    with (
        pytest.raises(errors.SevKvmError, match="MiB left") as caught,
        prepare(str(tmp_path / "core")).open(1 << 60),
    ):
        pytest.fail("opened")
    assert caught.value.help is not None
    assert list(tmp_path.iterdir()) == []


def test_a_hole_at_the_end_counts_and_a_rewrite_does_not_move_the_end(tmp_path):
    with prepare(str(tmp_path / "core")).open(1) as sink:
        sink.write(b"abcdef")
        sink.skip(10)
        sink.rewrite(1, b"XY")
        assert sink.offset == 16
    assert (tmp_path / "core").read_bytes() == b"aXYdef" + bytes(10)


def test_a_full_device_is_a_clear_error():
    with (
        pytest.raises(errors.SevKvmError, match="no space left") as caught,
        prepare("/dev/full").open(1) as sink,
    ):
        sink.write(b"abc")
    assert caught.value.help is not None


def test_a_device_node_is_written_in_place_and_stays_a_device():
    with prepare("/dev/null", force=True).open(1) as sink:
        sink.write(b"abc")
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)


def test_a_file_size_limit_is_a_clear_error_and_leaves_nothing(tmp_path):
    code = f"""
import resource, sys
from sevkvm import errors
from sevkvm.dump.output import prepare
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
try:
    with prepare({str(tmp_path / "core")!r}).open(1) as sink:
        sink.write(bytes(100_000))
except errors.SevKvmError as error:
    sys.exit(str(error))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stderr == f"{tmp_path / 'core'}: the file may not grow that large\n"
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_leaves_is_a_clear_error():
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        with (
            pytest.raises(errors.SevKvmError, match="stdout was closed"),
            StreamTarget(write_end, "stdout").open(1) as sink,
        ):
            sink.write(b"abc")
    finally:
        os.close(write_end)


def test_partial_writes_to_a_non_blocking_pipe_are_continued(tmp_path):
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    data = os.urandom(3 * MIB)
    with subprocess.Popen([sys.executable, "-c", "import sys; d = sys.stdin.buffer.read(); sys.stdout.buffer.write(d)"],
                          stdin=read_end, stdout=(tmp_path / "out").open("wb")) as reader:  # fmt: skip
        os.close(read_end)
        sink = FdSink(write_end, "stdout", seekable=False)
        sink.write(data)
        sink.skip(100_000)
        os.close(write_end)
        assert reader.wait(timeout=60) == 0
    assert sink.offset == len(data) + 100_000
    assert (tmp_path / "out").read_bytes() == data + bytes(100_000)


def test_a_pipe_that_takes_nothing_ends_in_an_error(monkeypatch):
    monkeypatch.setattr("sevkvm.dump.sink.STALL_SECONDS", 0.05)
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    try:
        with pytest.raises(errors.SevKvmError, match="took no data"):
            FdSink(write_end, "stdout", seekable=False).write(bytes(MIB))
    finally:
        os.close(read_end)
        os.close(write_end)


def test_a_named_pipe_without_a_reader_ends_in_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(output, "STALL_SECONDS", 0.1)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(errors.SevKvmError, match="nobody reads"), prepare(str(tmp_path / "fifo")).open(1):
        pytest.fail("opened")
