"""What protects a guest, as far as others tell it; only the kernel, asked from within the VMM, knows."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sevkvm import errors
from sevkvm.abi.policy import Policy
from sevkvm.abi.sev import guest_state_name
from sevkvm.doctor.finding import Finding, failed, heading, passed, refused, skipped
from sevkvm.host import procfs, qemuargs, qemusev
from sevkvm.host.sevdev import host_has_sev
from sevkvm.memory.policy import SevInfo, SevKind, require_debug

if TYPE_CHECKING:
    from sevkvm.doctor.machine import Machine
    from sevkvm.host.discovery import VmInfo
    from sevkvm.host.monitorfacts import MonitorSev

_ATTACH_HELP = "`sevkvm doctor --attach` asks the kernel"
_NAMES = {SevKind.SEV: "SEV", SevKind.SEV_ES: "SEV-ES", SevKind.SEV_SNP: "SEV-SNP"}


class Protection(NamedTuple):
    """``info`` is None where nobody told; ``source`` says who did; ``state`` as QEMU spells it."""

    info: SevInfo | None
    source: str
    state: str | None = None


def told(machine: Machine, vm: VmInfo, monitor: MonitorSev | None) -> Protection:
    """From the monitor, else QEMU's command line, else from what the host and the VMM have."""
    if monitor is not None:
        if not monitor.enabled:
            return Protection(SevInfo(SevKind.NONE), "the monitor says")
        info = _of_policy(monitor.policy) if monitor.policy is not None else SevInfo(SevKind.SEV_SNP)
        return Protection(info, "the monitor says", monitor.state)
    argv = procfs.cmdline(vm.pid, machine.proc)
    if qemuargs.is_qemu(argv):
        return _of_command_line(argv, vm)
    if vm.has_sev_device:
        return Protection(None, "the VMM has /dev/sev open")
    if host_has_sev(str(machine.dev / "sev"), machine.sys / "module/kvm_amd/parameters"):
        return Protection(SevInfo(SevKind.NONE), "the VMM has no /dev/sev open")
    return Protection(SevInfo(SevKind.NONE), "the host has no SEV")


def known(info: SevInfo) -> Protection:
    """What the kernel said, asked from within the VMM."""
    return Protection(info, "the kernel says", None if info.state is None else guest_state_name(info.state))


def findings(protection: Protection, vm: VmInfo) -> Finding:
    """Type, policy, state; and may it be debugged?"""
    info, source, state = protection
    if info is None:
        return skipped(
            "protection", f"{source}: whether the guest is encrypted shows only inside", _ATTACH_HELP
        )
    if not info.encrypted:
        return passed("protection", f"not encrypted ({source})")
    children = []
    if info.policy is not None:
        names = ", ".join(info.policy.flags) or "no restriction"
        children.append(passed("policy", f"0x{info.policy.value:x} ({names})"))
    if state is not None:
        children.append(passed("launch state", state))
    children.append(_debugging(info))
    if not vm.has_sev_device and info.kind is not SevKind.SEV_SNP:
        help = "KVM looks the descriptor up for every command: the VMM must keep /dev/sev open"
        children.append(failed("/dev/sev", "the VMM has closed it", help))
    return heading(passed("protection", f"{_NAMES[info.kind]} ({source})"), children)


def _debugging(info: SevInfo) -> Finding:
    try:
        require_debug(info)
    except errors.SevKvmError as error:
        return refused("debugging", error)
    return passed("debugging", "the policy allows it")


def _of_policy(value: int) -> SevInfo:
    policy = Policy(value)
    return SevInfo(SevKind.SEV_ES if policy.es else SevKind.SEV, policy)


def _of_command_line(argv: list[str], vm: VmInfo) -> Protection:
    source = "its command line says"
    try:
        used = qemusev.from_argv(argv).used
    except errors.UsageError as error:
        return Protection(None, str(error))
    if used is None:
        return Protection(SevInfo(SevKind.NONE), source)
    if not vm.has_sev_device:
        return Protection(
            SevInfo(SevKind.NONE), "its command line has a SEV object, but no /dev/sev is open for it"
        )
    return Protection(SevInfo(SevKind.SEV_SNP) if used.snp else _of_policy(used.policy), source)
