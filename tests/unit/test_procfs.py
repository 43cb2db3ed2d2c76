"""/proc text, from made-up trees."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sevkvm import errors
from sevkvm.host import procfs
from sevkvm.host.procfs import Mapping, Task
from tests.support.fakeproc import FakeProc, stat_line

MAPS = """\
55dc00000000-55dc00001000 r-xp 00002000 fe:00 2170902                    /usr/bin/qemu system (deleted)
7fa4affff000-7fa4b3fff000 rw-s 00000000 00:01 1771                       /memfd:memory-backend-memfd (deleted)
7fa4b4021000-7fa4b8000000 ---p 00000000 00:00 0 \n\
7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0                          [stack]
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
"""


@pytest.fixture
def fake(tmp_path: Path) -> FakeProc:
    return FakeProc(tmp_path)


def test_pids_are_the_numbers_only(fake: FakeProc) -> None:
    fake.process(20)
    fake.process(3)
    assert procfs.pids(fake.root) == [3, 20]


def test_maps(fake: FakeProc) -> None:
    fake.process(7, maps=MAPS)
    entries = procfs.maps(7, fake.root)
    assert entries[0] == Mapping(
        0x55DC00000000, 0x55DC00001000, "r-xp", 0x2000, "fe:00", 2170902, "/usr/bin/qemu system (deleted)"
    )
    assert entries[1].path == "/memfd:memory-backend-memfd (deleted)"
    assert entries[1].inode == 1771
    assert [each.path for each in entries[2:4]] == ["", "[stack]"]
    assert [each.readable for each in entries] == [True, True, False, True, False]


@pytest.mark.parametrize("comm", ["qemu", "a b", "((x)", ") S 1 (", "", "tab\tand\nnewline"])
def test_stat_with_any_name(fake: FakeProc, comm: str) -> None:
    fake.process(7, comm="x")
    (fake.root / "7/stat").write_text(stat_line(7, comm, ppid=5, flags=0x4040, starttime=987654))
    stat = procfs.stat(7, fake.root)
    assert (stat.pid, stat.comm, stat.state, stat.ppid) == (7, comm, "S", 5)
    assert (stat.flags, stat.starttime) == (0x4040, 987654)


def test_stat_of_ourselves() -> None:
    stat = procfs.stat(os.getpid())
    assert stat.ppid == os.getppid()
    assert stat.comm == Path("/proc/self/comm").read_text().rstrip("\n")
    assert 0 < stat.starttime < 1 << 63


def test_status(fake: FakeProc) -> None:
    fake.process(7, uid=107, euid=36, tracer=99, seccomp=2, nnp=1, features="shstk wrss ")
    status = procfs.status(7, fake.root)
    assert (status.tgid, status.tracer_pid, status.seccomp) == (7, 99, 2)
    assert (status.uid, status.euid, status.no_new_privs) == (107, 36, True)
    assert status.thread_features == {"shstk", "wrss"}


def test_status_of_a_kernel_that_prints_little(fake: FakeProc) -> None:
    fake.process(7)
    (fake.root / "7/status").write_text("Name:\tx\n")
    status = procfs.status(7, fake.root)
    assert (status.tgid, status.uid, status.euid, status.seccomp) == (7, -1, -1, 0)
    assert not status.no_new_privs
    assert status.thread_features == frozenset()


@pytest.mark.parametrize("argv", [[], ["qemu"], ["qemu", "", "-name", "a b"], ["x", ""]])
def test_cmdline(fake: FakeProc, argv: list[str]) -> None:
    fake.process(7, argv=argv)
    assert procfs.cmdline(7, fake.root) == argv


def test_cmdline_of_bytes_that_are_no_text(fake: FakeProc) -> None:
    fake.process(7)
    (fake.root / "7/cmdline").write_bytes(b"a\r\nb\0\xff\xfe\0")
    assert [os.fsencode(each) for each in procfs.cmdline(7, fake.root)] == [b"a\r\nb", b"\xff\xfe"]


def test_fd_links(fake: FakeProc) -> None:
    fake.process(7, fds={11: "vm:A", 9: "/dev/sev", 100: "vcpu:A:3", 5: "anon_inode:kvm-vcpu-stats:3"})
    links = procfs.fd_links(7, fake.root)
    assert list(links.items()) == [
        (5, "anon_inode:kvm-vcpu-stats:3"),
        (9, "/dev/sev"),
        (11, "anon_inode:kvm-vm"),
        (100, "anon_inode:kvm-vcpu:3"),
    ]
    assert [procfs.vcpu_index(link) for link in links.values()] == [None, None, None, 3]


@pytest.mark.parametrize(
    ("link", "expected"),
    [
        ("/dev/sev", True),
        ("/run/vm/dev/sev", True),
        ("/memfd:sev (deleted)", True),
        ("/dev/sev-guest", False),
        ("/dev/sevx", False),
        ("/memfd:ram (deleted)", False),
        ("socket:[1]", False),
        ("sev", False),
    ],
)
def test_what_looks_like_the_sev_device(link: str, expected: bool) -> None:
    assert procfs.is_sev_device(link) is expected


def test_a_descriptor_closed_meanwhile_is_left_out(fake: FakeProc, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.process(7, fds={3: "/a", 4: "/b"})
    real = os.readlink

    def closing(path: str) -> str:
        if path.endswith("/3"):
            Path(path).unlink()
        return real(path)

    monkeypatch.setattr(os, "readlink", closing)
    assert procfs.fd_links(7, fake.root) == {4: "/b"}


def test_tasks_tell_kernel_driven_ones_apart(fake: FakeProc) -> None:
    directory = fake.process(7, comm="qemu")
    for tid, comm, flags in ((8, "CPU 0/KVM", 0x400040), (9, "kvm-nx-lpage-re", 0x404040)):
        (directory / f"task/{tid}").mkdir()
        (directory / f"task/{tid}/stat").write_text(stat_line(tid, comm, flags=flags))
    (directory / "task/10").mkdir()  # listed, and gone when asked
    assert procfs.tasks(7, fake.root) == [
        Task(7, "qemu", False),
        Task(8, "CPU 0/KVM", False),
        Task(9, "kvm-nx-lpage-re", True),
    ]


def test_cwd_and_root(fake: FakeProc) -> None:
    directory = fake.process(7)
    (directory / "cwd").symlink_to("/var/run")
    (directory / "root").symlink_to("/srv/jail")
    assert (procfs.cwd(7, fake.root), procfs.root(7, fake.root)) == ("/var/run", "/srv/jail")


@pytest.mark.parametrize(
    "ask",
    [
        procfs.maps,
        procfs.stat,
        procfs.status,
        procfs.cmdline,
        procfs.fd_links,
        procfs.tasks,
        procfs.cwd,
        procfs.root,
    ],
)
def test_no_such_process(fake: FakeProc, ask: object) -> None:
    assert callable(ask)
    with pytest.raises(errors.VmNotFound, match="no process 7"):
        ask(7, fake.root)


@pytest.mark.parametrize("code", [13, 1])
def test_no_rights(fake: FakeProc, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    fake.process(7, fds={3: "/a"})

    def refuse(path: str) -> str:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "readlink", refuse)
    with pytest.raises(errors.AttachError) as caught:
        procfs.fd_links(7, fake.root)
    assert caught.value.pid == 7
    assert caught.value.help is not None
    assert "root" in caught.value.help


def test_a_process_that_ends_between_open_and_read_is_gone(
    fake: FakeProc, monkeypatch: pytest.MonkeyPatch
) -> None:
    def vanish(path: str) -> str:
        raise ProcessLookupError(3, "No such process")

    monkeypatch.setattr(os, "readlink", vanish)
    with pytest.raises(errors.VmNotFound):
        procfs.cwd(7, fake.root)
