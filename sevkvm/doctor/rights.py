"""Our own rights: may we attach to other people's processes?

Source: Linux kernel/ptrace.c, security/yama/yama_lsm.c, Documentation/admin-guide/LSM/Yama.rst (v6.18).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sevkvm.doctor.credentials import (
    CAP_IPC_LOCK,
    CAP_SYS_ADMIN,
    CAP_SYS_PTRACE,
    INITIAL_PID_NAMESPACE,
    INITIAL_USER_NAMESPACE,
    Credentials,
    credentials,
    memlock_limit,
)
from sevkvm.doctor.finding import Finding, failed, grouped, passed, skipped, warned
from sevkvm.doctor.machine import user_name
from sevkvm.native import PTRACE_HELP

if TYPE_CHECKING:
    from sevkvm.doctor.machine import Machine

_YAMA = {
    0: "0: a user's own processes may be attached to",
    1: "1: only with CAP_SYS_PTRACE, or to one's own children",
    2: "2: only with CAP_SYS_PTRACE",
    3: "3: nobody may attach to anything, and only a reboot changes that",
}


def examine(machine: Machine) -> Finding:
    """What of the system decides about ptrace(2), and what a VMM started from here would inherit."""
    ours = credentials(machine, "self")
    return grouped(
        "rights",
        (
            _user(machine, ours),
            yama(machine, ours),
            _modules(machine),
            _lockdown(machine),
            _seccomp(ours),
            _namespaces(machine),
            _memlock(machine, ours),
        ),
    )


def yama_scope(machine: Machine) -> int | None:
    """``ptrace_scope``; None without Yama."""
    text = machine.text(machine.proc / "sys/kernel/yama/ptrace_scope")
    return int(text) if text is not None and text.isdecimal() else None


def yama(machine: Machine, ours: Credentials) -> Finding:
    """Yama's say."""
    scope = yama_scope(machine)
    if scope is None:
        return passed("Yama", "not in this kernel")
    told = f"ptrace_scope {_YAMA.get(scope, str(scope))}"
    if scope >= 3:
        return failed("Yama", told, "boot without kernel.yama.ptrace_scope=3 in /etc/sysctl.d")
    if scope >= 1 and not ours.has(CAP_SYS_PTRACE):
        return failed("Yama", told, PTRACE_HELP)
    return passed("Yama", told)


def _user(machine: Machine, ours: Credentials) -> Finding:
    has = [
        name
        for name, number in (("CAP_SYS_PTRACE", CAP_SYS_PTRACE), ("CAP_SYS_ADMIN", CAP_SYS_ADMIN))
        if ours.has(number)
    ]
    told = (
        f"{user_name(ours.euid)}, {' and '.join(has) if has else 'neither CAP_SYS_PTRACE nor CAP_SYS_ADMIN'}"
    )
    if ours.has(CAP_SYS_PTRACE):
        return passed("user", told)
    return warned("user", f"{told}: only VMMs of the same user can be attached to", PTRACE_HELP)


def _modules(machine: Machine) -> Finding:
    text = machine.text(machine.sys / "kernel/security/lsm")
    if text is None:
        return skipped("security modules", "/sys/kernel/security/lsm cannot be read")
    context = (machine.text(machine.proc / "self/attr/current") or "").rstrip("\0")
    names = text.split(",")
    denied = (machine.text(machine.sys / "fs/selinux/booleans/deny_ptrace") or "0").split()[0]
    if "selinux" in names and denied == "1":
        return failed("security modules", f"{text}: SELinux denies ptrace", "`setsebool deny_ptrace off`")
    confined = ("selinux" in names and ":unconfined_t:" not in context) or (
        "apparmor" in names and context not in ("unconfined", "")
    )
    if context and confined:
        return warned(
            "security modules",
            f"{text}; we are {context}",
            "if attaching is refused, run unconfined; see `dmesg`",
        )
    return passed("security modules", f"{text}; we are unconfined" if context else text)


def _lockdown(machine: Machine) -> Finding:
    text = machine.text(machine.sys / "kernel/security/lockdown")
    if text is None:
        return passed("lockdown", "not in this kernel")
    mode = text.partition("[")[2].partition("]")[0]
    return passed("lockdown", mode if mode in ("", "none") else f"{mode}: forbids nothing that sevkvm does")


def _seccomp(ours: Credentials) -> Finding:
    if not ours.seccomp:
        return passed("seccomp", "no filter on us")
    return warned(
        "seccomp",
        "a filter is on us: it may refuse ptrace, process_vm_readv or kcmp",
        "run outside the container, or with --security-opt seccomp=unconfined --cap-add SYS_PTRACE",
    )


def _namespaces(machine: Machine) -> Finding:
    children = []
    for kind, initial in (("pid", INITIAL_PID_NAMESPACE), ("user", INITIAL_USER_NAMESPACE)):
        ours = machine.namespace("self", kind)
        if ours is None:
            children.append(skipped(f"{kind} namespace", "cannot be told"))
        elif ours == initial:
            children.append(passed(f"{kind} namespace", "the host's own"))
        elif kind == "pid":
            told = "we are in a container: only VMMs inside it can be seen"
            children.append(warned("pid namespace", told, "run on the host, or with --pid=host"))
        else:
            told = "our capabilities hold only for processes of this namespace"
            children.append(warned("user namespace", told, "run on the host"))
    return grouped("namespaces", children)


def _memlock(machine: Machine, ours: Credentials) -> Finding:
    limit = memlock_limit(machine, "self")
    if ours.has(CAP_IPC_LOCK):
        return passed("memlock", "CAP_IPC_LOCK: no limit for what is started from here")
    if limit is None:
        return passed("memlock", "unlimited")
    return warned(
        "memlock",
        f"{limit >> 10} KiB: a VMM started from here could not pin an encrypted guest's memory",
        "`ulimit -l unlimited`, systemd's LimitMEMLOCK=infinity, or libvirt's hard_limit",
    )
