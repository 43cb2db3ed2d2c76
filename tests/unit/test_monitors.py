"""Where a QEMU's monitor is, as seen from outside its root and working directory."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sevkvm import errors
from sevkvm.host.monitors import monitor_socket
from tests.support.fakeproc import FakeProc

QEMU = "qemu-system-x86_64"
UNIX_HEADING = "Num       RefCount Protocol Flags    Type St Inode Path\n"

Listen = Callable[[Path], socket.socket]


@pytest.fixture
def listen() -> Iterator[Listen]:
    opened: list[socket.socket] = []

    def bind(path: Path) -> socket.socket:
        server = socket.socket(socket.AF_UNIX)
        opened.append(server)
        server.bind(str(path))
        server.listen()
        return server

    yield bind
    for each in opened:
        each.close()


def start(tmp_path: Path, argv: list[str], *, root: str = "/", cwd: str = "/", unix: str = "") -> Path:
    """A process 7 in a made-up /proc; its root."""
    proc = tmp_path / "proc"
    proc.mkdir()
    directory = FakeProc(proc).process(7, argv=[QEMU, *argv])
    (directory / "root").symlink_to(root)
    (directory / "cwd").symlink_to(cwd)
    (directory / "net").mkdir()
    (directory / "net/unix").write_text(UNIX_HEADING + unix)
    return proc


def test_absolute_path(tmp_path: Path, listen: Listen) -> None:
    path = tmp_path / "q"
    listen(path)
    assert monitor_socket(7, start(tmp_path, ["-qmp", f"unix:{path},server=on,wait=off"])) == str(path)


def test_relative_path_is_the_vmms(tmp_path: Path, listen: Listen) -> None:
    (tmp_path / "run").mkdir()
    listen(tmp_path / "run/q")
    proc = start(tmp_path, ["-qmp", "unix:q,server=on"], cwd=str(tmp_path / "run"))
    assert monitor_socket(7, proc) == str(tmp_path / "run/q")


def test_another_root_is_entered_through_proc(tmp_path: Path, listen: Listen) -> None:
    (tmp_path / "jail/run").mkdir(parents=True)
    listen(tmp_path / "jail/run/q")
    proc = start(tmp_path, ["-qmp", "unix:/run/q,server=on"], root=str(tmp_path / "jail"))
    assert monitor_socket(7, proc) == f"{proc}/7/root/run/q"


def test_a_socket_bound_before_the_root_changed(tmp_path: Path, listen: Listen) -> None:
    (tmp_path / "empty").mkdir()
    listen(tmp_path / "q")
    proc = start(tmp_path, ["-qmp", f"unix:{tmp_path}/q,server=on"], root=str(tmp_path / "empty"))
    assert monitor_socket(7, proc) == f"{tmp_path}/q"


def test_what_is_no_socket_is_passed_over(tmp_path: Path, listen: Listen) -> None:
    (tmp_path / "file").touch()
    listen(tmp_path / "q")
    argv = [f"unix:{tmp_path}/{name},server=on" for name in ("gone", "file", "q")]
    proc = start(tmp_path, [word for each in argv for word in ("-qmp", each)])
    assert monitor_socket(7, proc) == str(tmp_path / "q")


@pytest.mark.parametrize("argv", [[], ["-qmp", "unix:/nonexistent,server=on"], ["-qmp", "unix:\0,server"]])
def test_none(tmp_path: Path, argv: list[str]) -> None:
    assert monitor_socket(7, start(tmp_path, argv)) is None


def test_a_free_socket_is_preferred(tmp_path: Path, listen: Listen) -> None:
    taken, free = tmp_path / "taken socket", tmp_path / "free"
    listen(taken)
    listen(free)
    unix = (
        f"0000000000000000: 00000002 00000000 00010000 0001 01 11 {taken}\n"
        f"0000000000000000: 00000003 00000000 00000000 0001 03 12 {taken}\n"
        f"0000000000000000: 00000002 00000000 00010000 0001 01 13 {free}\n"
        "0000000000000000: 00000003 00000000 00000000 0001 03 14\n"
    )
    argv = ["-qmp", f"unix:{taken},server=on", "-qmp", f"unix:{free},server=on"]
    assert monitor_socket(7, start(tmp_path, argv, unix=unix)) == str(free)


def test_all_taken(tmp_path: Path, listen: Listen) -> None:
    listen(tmp_path / "q")
    unix = f"0000000000000000: 00000003 00000000 00000000 0001 03 12 {tmp_path}/q\n"
    proc = start(tmp_path, ["-qmp", f"unix:{tmp_path}/q,server=on"], unix=unix)
    with pytest.raises(errors.AttachError, match="another client uses the monitor of process 7") as caught:
        monitor_socket(7, proc, patience=0.1)
    assert caught.value.help is not None
    assert "-qmp" in caught.value.help
