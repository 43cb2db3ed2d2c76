"""A made-up /proc, with the bytes as Linux 6.18 prints them, and a made-up kcmp(2) to go with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from sevkvm import errors

STATUS = """Name:\t{comm}
Umask:\t0022
State:\tS (sleeping)
Tgid:\t{pid}
Ngid:\t0
Pid:\t{pid}
PPid:\t{ppid}
TracerPid:\t{tracer}
Uid:\t{uid}\t{euid}\t{euid}\t{euid}
Gid:\t0\t0\t0\t0
FDSize:\t256
Groups:\t \n\
NStgid:\t{pid}
Kthread:\t0
Threads:\t1
x86_Thread_features:\t{features}
x86_Thread_features_locked:\t
NoNewPrivs:\t{nnp}
Seccomp:\t{seccomp}
Seccomp_filters:\t0
"""


def stat_line(pid: int, comm: str, *, ppid: int = 1, flags: int = 0x400040, starttime: int = 100) -> str:
    """One line of ``stat``, fields numbered as in proc.rst: 4 ppid, 9 flags, 22 starttime."""
    rest = ["S", ppid, pid, pid, 0, -1, flags, *[0] * 12, starttime, 4096, 17, *[0] * 28]
    return f"{pid} ({comm}) " + " ".join(str(each) for each in rest) + "\n"


class FakeProc:
    """``root`` is the proc root; ``files`` says which open file a (pid, fd) is, for ``same_file``."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files: dict[tuple[int, int], str] = {}
        for name in ("uptime", "self", "kpagecount"):
            (root / name).touch()

    def process(
        self,
        pid: int,
        *,
        comm: str = "vmm",
        argv: Sequence[str] = (),
        ppid: int = 1,
        starttime: int = 100,
        fds: Mapping[int, str] | None = None,
        maps: str = "",
        uid: int = 0,
        euid: int | None = None,
        tracer: int = 0,
        features: str = "",
        nnp: int = 0,
        seccomp: int = 0,
    ) -> Path:
        """Add a process. An fd ``"vm:A"`` is a descriptor of the VM called A, ``"vcpu:A:0"`` of its vCPU 0."""
        directory = self.root / str(pid)
        (directory / "fd").mkdir(parents=True)
        stat = stat_line(pid, comm, ppid=ppid, starttime=starttime)
        (directory / "stat").write_text(stat)
        (directory / "status").write_text(
            STATUS.format(
                pid=pid,
                comm=comm,
                ppid=ppid,
                uid=uid,
                euid=uid if euid is None else euid,
                tracer=tracer,
                features=features,
                nnp=nnp,
                seccomp=seccomp,
            )
        )
        (directory / "cmdline").write_bytes(b"".join(each.encode() + b"\0" for each in argv))
        (directory / "maps").write_text(maps)
        (directory / "task" / str(pid)).mkdir(parents=True)
        (directory / "task" / str(pid) / "stat").write_text(stat)
        for fd, what in (fds or {}).items():
            self.files[pid, fd] = what
            (directory / "fd" / str(fd)).symlink_to(_link(what))
        return directory

    def same_file(self, pid1: int, fd1: int, pid2: int, fd2: int) -> bool:
        """kcmp(2), KCMP_FILE."""
        try:
            return self.files[pid1, fd1] == self.files[pid2, fd2]
        except KeyError:
            raise errors.TargetGone("no such descriptor") from None


def _link(what: str) -> str:
    kind, _, rest = what.partition(":")
    if kind == "vm":
        return "anon_inode:kvm-vm"
    if kind == "vcpu":
        return f"anon_inode:kvm-vcpu:{rest.rpartition(':')[2]}"
    return what
