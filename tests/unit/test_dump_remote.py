"""Dumps to URLs: complete or not there, whatever the store; fsspec's own memory and local stores stand for one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sevkvm import errors
from sevkvm.dump.output import prepare

fsspec = pytest.importorskip("fsspec", reason="the extra sevkvm[remote] is not installed")

URL = "memory://bucket/guest.lime"


@pytest.fixture(autouse=True)
def _empty_store() -> Iterator[None]:
    yield
    fsspec.filesystem("memory").store.clear()


def stored(url: str = URL) -> bytes | None:
    store, path = fsspec.core.url_to_fs(url)
    return bytes(store.cat(path)) if store.exists(path) else None


def test_it_appears_when_it_is_complete() -> None:
    target = prepare(URL)
    assert not target.seekable
    with target.open(1 << 40) as sink:
        sink.write(b"one")
        sink.skip(3 << 20)
        sink.write(memoryview(b"two"))
        assert sink.offset == (3 << 20) + 6
        assert stored() is None
    assert stored() == b"one" + bytes(3 << 20) + b"two"


def broken_off(error: BaseException) -> None:
    with prepare(URL).open(10) as sink:
        sink.write(b"secret")
        raise error


@pytest.mark.parametrize("error", [KeyError("mine"), KeyboardInterrupt()])
def test_a_failure_leaves_nothing_and_is_told_as_it_was(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught:
        broken_off(error)
    assert caught.value is error
    assert stored() is None


def test_what_exists_is_kept_unless_forced() -> None:
    with prepare(URL).open(3) as sink:
        sink.write(b"old")
    with pytest.raises(errors.UsageError, match="exists"):
        prepare(URL)
    with prepare(URL, force=True).open(3) as sink:
        sink.write(b"new")
    assert stored() == b"new"


def test_a_store_that_cannot_be_reached_is_named() -> None:
    with pytest.raises(errors.SevKvmError, match=r"ftp://127\.0\.0\.1:1/dump: Connection refused"):
        prepare("ftp://127.0.0.1:1/dump")


def test_a_local_url_is_a_file_like_any_other(tmp_path: Path) -> None:
    target = prepare(f"file://{tmp_path}/dump")
    assert target.seekable
    with target.open(3) as sink:
        sink.write(b"abc")
    assert (tmp_path / "dump").read_bytes() == b"abc"
    assert (tmp_path / "dump").stat().st_mode & 0o777 == 0o600


def test_an_unknown_protocol_is_a_usage_error() -> None:
    with pytest.raises(errors.UsageError, match="nonsense"):
        prepare("nonsense://bucket/dump")
