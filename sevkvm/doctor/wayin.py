"""The way into a VMM: what attaching would refuse, and why, without attaching.

Source of the rules: Linux kernel/ptrace.c (__ptrace_may_access), security/commoncap.c, security/yama (v6.18).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from sevkvm import errors
from sevkvm.doctor.credentials import CAP_SYS_ADMIN, CAP_SYS_PTRACE, Credentials, credentials
from sevkvm.doctor.finding import Finding, failed, grouped, passed, refused, skipped, warned
from sevkvm.doctor.machine import user_name
from sevkvm.doctor.rights import yama
from sevkvm.host import procfs, qemuargs
from sevkvm.host.deputy import sandbox_is_known
from sevkvm.native import PTRACE_HELP, SANDBOX_HELP

if TYPE_CHECKING:
    from sevkvm.doctor.machine import Machine

TRACED_HELP: Final = "detach the other debugger first"
_MOST_TASKS: Final = 65536
_CALLS: Final = "mmap, munmap, clone, ioctl and exit"


def examine(machine: Machine, pid: int) -> Finding:
    """Every precondition of the deputy; the one called ``deputy`` is what attaching itself would find."""
    ours = credentials(machine, "self")
    theirs = credentials(machine, pid)
    children = [
        _user(machine, ours, theirs),
        *_dumpable(machine, pid, ours, theirs),
        yama(machine, ours),
        _tracer(machine, pid),
        _state(machine, pid),
        _program(machine, pid),
        _sandbox(machine, pid, ours, theirs),
        *_namespaces(machine, pid),
        _deputy(machine, pid),
    ]
    return grouped("way in", children)


def _user(machine: Machine, ours: Credentials, theirs: Credentials) -> Finding:
    told = f"the VMM is {user_name(theirs.euid)}'s, we are {user_name(ours.euid)}"
    if ours.has(CAP_SYS_PTRACE):
        return passed("user", f"{told} with CAP_SYS_PTRACE")
    if (ours.uid, ours.uid) != (theirs.uid, theirs.euid):
        return failed("user", f"{told} without CAP_SYS_PTRACE", PTRACE_HELP)
    if theirs.cap_permitted & ~ours.cap_permitted:
        return failed("user", f"{told}, but the VMM has capabilities that we have not", PTRACE_HELP)
    return passed("user", told)


def _dumpable(machine: Machine, pid: int, ours: Credentials, theirs: Credentials) -> Iterator[Finding]:
    """A process that may not be dumped has its /proc directory owned by root: proc(5)."""
    owner = machine.owner_of(machine.proc / str(pid))
    if owner is None or owner.uid == theirs.euid:
        return
    told = "the VMM made itself undumpable (prctl PR_SET_DUMPABLE, or it changed its user)"
    if ours.has(CAP_SYS_PTRACE):
        yield passed("dumpable", f"{told}; CAP_SYS_PTRACE attaches nevertheless")
    else:
        yield failed("dumpable", told, PTRACE_HELP)


def _tids(machine: Machine, pid: int) -> list[int]:
    return [task.tid for task in procfs.tasks(pid, machine.proc) if not task.user_worker][:_MOST_TASKS]


def _tracer(machine: Machine, pid: int) -> Finding:
    tracer = credentials(machine, pid).tracer_pid
    if tracer:
        return failed("tracer", f"process {tracer} ({_comm(machine, tracer)}) traces the VMM", TRACED_HELP)
    for tid in _tids(machine, pid):
        tracer = credentials(machine, pid, tid).tracer_pid
        if tracer:  # another sevkvm, with a deputy of its own, does no harm
            told = f"process {tracer} ({_comm(machine, tracer)}) traces thread {tid} of the VMM"
            return warned("tracer", told, f"unless that is another sevkvm: {TRACED_HELP}")
    return passed("tracer", "none")


def _comm(machine: Machine, pid: int) -> str:
    return machine.text(machine.proc / str(pid) / "comm") or "?"


def _state(machine: Machine, pid: int) -> Finding:
    state = procfs.stat(pid, machine.proc).state
    if state in "tT":
        return warned("state", "the VMM is stopped by a signal or a debugger", f"`kill -CONT {pid}`")
    if state in "ZX":
        return failed("state", "the VMM has ended", "`sevkvm list` shows what runs now")
    return passed("state", "alive")


def _program(machine: Machine, pid: int) -> Finding:
    """A 32-bit VMM has no place for a deputy."""
    try:
        with (machine.proc / str(pid) / "exe").open("rb") as file:
            ident = file.read(5)
    except OSError:
        return skipped("program", "its file cannot be read")
    if ident[:4] == b"\x7fELF" and ident[4] != 2:
        return failed("program", "32-bit", "run a 64-bit VMM")
    return passed("program", "64-bit")


def _sandbox(machine: Machine, pid: int, ours: Credentials, theirs: Credentials) -> Finding:
    mode = max([theirs.seccomp, *(credentials(machine, pid, tid).seccomp for tid in _tids(machine, pid))])
    argv = procfs.cmdline(pid, machine.proc)
    asked = [argv[n + 1] for n, word in enumerate(argv[:-1]) if word in ("-sandbox", "--sandbox")]
    told = f"seccomp filter, -sandbox {asked[-1]}" if asked and mode else "seccomp filter"
    if mode == 0:
        return passed("sandbox", "no seccomp filter")
    if mode == 1:
        return failed("sandbox", "strict seccomp: any call of a deputy would kill the VMM", forbidden=True)
    if qemuargs.is_qemu(argv):
        return passed("sandbox", f"{told}; QEMU's strictest lets pass what a deputy calls: {_CALLS}")
    if ours.has(CAP_SYS_ADMIN) and not ours.seccomp:
        told += f", not QEMU's; attaching asks it first, and refuses unless it lets pass {_CALLS}"
        return passed("sandbox", told)
    if sandbox_is_known(pid, machine.proc):
        return passed("sandbox", f"{told} of the pretend SEV host, which kills nobody")
    return failed(
        "sandbox",
        f"{told}, not QEMU's, and not shown to us: what it forbids would kill the VMM",
        SANDBOX_HELP,
    )


def _namespaces(machine: Machine, pid: int) -> Iterator[Finding]:
    for kind, consequence in (
        ("pid", "thread ids differ: to read registers, all threads of the VMM are held"),
        ("user", "capabilities count there only if they do here"),
        ("mnt", "its files and sockets are reached through /proc/PID/root"),
    ):
        ours, theirs = machine.namespace("self", kind), machine.namespace(pid, kind)
        if ours is not None and theirs is not None and ours != theirs:
            yield passed(f"{kind} namespace", f"the VMM has its own; {consequence}")


def _deputy(machine: Machine, pid: int) -> Finding:
    try:
        machine.deputy_check(pid)
    except errors.SevKvmError as error:
        return refused("deputy", error)
    return passed("deputy", "rights, threads and code are as attaching needs them; nothing was touched")
