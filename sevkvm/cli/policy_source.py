"""Where a policy to explain comes from: a number, the firmware, QEMU's command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sevkvm import errors
from sevkvm.abi.policy import Policy, SnpPolicy
from sevkvm.cli.run import warn
from sevkvm.host import procfs, qemuargs, qemusev
from sevkvm.memory.policy import SevKind

if TYPE_CHECKING:
    from sevkvm.abi.policy import AnyPolicy
    from sevkvm.cli.options import GuestSession
    from sevkvm.host.qemusev import SevArgs, SevObject
    from sevkvm.memory.policy import SevInfo


@dataclass(frozen=True)
class Found:
    """A policy; ``source``: ``argument``, ``options``, ``firmware`` or ``qemu-args``.

    ``must_migrate``: the VMM was told to keep the guest migratable.
    """

    policy: AnyPolicy
    source: str
    must_migrate: bool = False


def from_value(value: int, *, snp: bool, source: str = "argument") -> Found:
    """A number."""
    return Found(SnpPolicy(value) if snp else Policy(value), source)


def from_text(text: str) -> Found:
    """``--qemu-args``."""
    return _of_args(qemusev.from_text(text))


def from_process(pid: int) -> Found:
    """The command line of a process."""
    args = _args_of(pid)
    if args is None or not args.objects:
        raise errors.SevKvmError(f"the command line of process {pid} has no SEV object of QEMU's")
    return _of_args(args)


def from_guest(session: GuestSession) -> Found:
    """What the firmware says of a running guest; where nobody can ask it, the VMM's command line, with a warning."""
    from sevkvm.attach import Needs

    try:
        with session.open(need_debug=False, needs=Needs.STATUS) as guest:
            info, pid = guest.sev, guest.pid
    except errors.VmNotFound:
        named = session.arguments["pid"]
        if named is None or not (args := _args_of(named)) or not args.objects:
            raise
        warn(f"process {named} has no KVM VM: this is only what its command line asks for")
        return _of_args(args)
    assert pid is not None
    return _of_running(info, _args_of(pid))


def _of_running(info: SevInfo, args: SevArgs | None) -> Found:
    used = args.used if args else None
    migratable = args is not None and args.only_migratable
    if info.policy is not None:
        if used is not None and not used.snp and used.policy != info.policy.value:
            warn(
                f"QEMU's command line asks for policy 0x{used.policy:x}, "
                f"but the firmware says 0x{info.policy.value:x}"
            )
        return Found(info.policy, "firmware", migratable)
    if info.kind is SevKind.SEV_SNP:
        if used is None or not used.snp:
            raise errors.PlatformUnsupported(
                "this is a SEV-SNP guest: Linux does not tell its policy, and the VMM's command line has none"
            )
        warn("Linux does not tell a SEV-SNP guest's policy: this is what QEMU's command line asks for")
    elif used is None:
        raise errors.SevKvmError(
            "the guest is not encrypted: it has no policy",
            help="decode a number, or what a command line asks for (--qemu-args)",
        )
    else:
        warn("the guest is not encrypted: this is only what its command line asks for")
    return _as_found(used, migratable)


def _of_args(args: SevArgs) -> Found:
    if args.used is None:
        raise errors.UsageError(
            f"the command line has {len(args.objects)} SEV objects, and the machine names none of them",
            help="-machine confidential-guest-support=ID says which one is used",
        )
    return _as_found(args.used, args.only_migratable)


def _as_found(used: SevObject, migratable: bool) -> Found:
    if not used.stated:
        warn(f"the {used.kind} object states no policy: 0x{used.policy:x} is QEMU's default")
    return Found(SnpPolicy(used.policy) if used.snp else Policy(used.policy), "qemu-args", migratable)


def _args_of(pid: int) -> SevArgs | None:
    """None for a program that is no QEMU."""
    try:
        argv = procfs.cmdline(pid)
    except (errors.SevKvmError, OSError):
        return None
    try:
        return qemusev.from_argv(argv) if qemuargs.is_qemu(argv) else None
    except errors.UsageError as error:
        warn(str(error))
        return None
