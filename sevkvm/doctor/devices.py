"""``/dev/kvm``, ``/dev/sev`` and the secure processor behind it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sevkvm import errors
from sevkvm.abi.sev import PlatformState, PlatformStatus
from sevkvm.doctor.finding import Finding, failed, heading, passed, refused, skipped, warned
from sevkvm.doctor.machine import group_name, user_name

if TYPE_CHECKING:
    from pathlib import Path

    from sevkvm.doctor.machine import Machine, Owner

_OWNED: Final = 1 << 0  # psp-sev.h: flags of sev_user_data_status
_ES: Final = 1 << 8
_OTHERS_MAY_WRITE: Final = 0o002
PlatformAnswer = PlatformStatus | errors.SevKvmError


def ask_platform(machine: Machine) -> PlatformAnswer:
    """The secure processor's status, or why there is none."""
    try:
        return machine.platform_status(str(machine.dev / "sev"))
    except errors.SevKvmError as error:
        return error


def kvm(machine: Machine) -> Finding:
    """``/dev/kvm``; sevkvm itself never opens it."""
    path = machine.dev / "kvm"
    owner = machine.owner_of(path)
    if owner is None:
        help = "load kvm and the vendor's module; SVM or VT-x must be enabled in the firmware setup (BIOS)"
        return failed("/dev/kvm", "missing: no KVM guest can run here", help)
    return _node(machine, path, "/dev/kvm", owner)


def sev(machine: Machine, answer: PlatformAnswer, *, wanted: bool) -> Finding:
    """``/dev/sev``: the node, and what the platform says through it."""
    path = machine.dev / "sev"
    owner = machine.owner_of(path)
    if owner is None and not wanted:
        return skipped("/dev/sev", "missing; there is no SEV in the processor")
    if owner is None:
        help = answer.help if isinstance(answer, errors.SevKvmError) else None
        return failed("/dev/sev", "missing", help)
    platform = _platform(answer)
    if owner.mode & _OTHERS_MAY_WRITE:
        told = f"{_told(owner)}: anybody may reset the platform, and its keys with it"
        return heading(warned("/dev/sev", told, "let udev make it 0660, of the VMMs' group"), [platform])
    return heading(_node(machine, path, "/dev/sev", owner), [platform])


def _node(machine: Machine, path: Path, name: str, owner: Owner) -> Finding:
    if machine.may_use(path):
        return passed(name, _told(owner))
    return warned(
        name,
        f"{_told(owner)}: not for us",
        f"sevkvm needs no access; whoever starts guests does: root, or a member of {group_name(owner.gid)}",
    )


def _told(owner: Owner) -> str:
    return f"{user_name(owner.uid)}:{group_name(owner.gid)} {owner.mode:04o}"


def _platform(answer: PlatformAnswer) -> Finding:
    if isinstance(answer, errors.AttachError):
        return skipped("platform", "not asked: we may not open /dev/sev", answer.help)
    if isinstance(answer, errors.SevKvmError):
        return refused("platform", answer)
    state = (
        PlatformState(answer.state).name
        if answer.state in PlatformState._value2member_map_
        else f"unknown ({answer.state})"
    )
    told = f"SEV API {answer.api_major}.{answer.api_minor}, build {answer.build}; {state}"
    if answer.state == PlatformState.UNINIT:
        return passed("platform", f"{told}: initialised with the first encrypted guest")
    guests = f"{answer.guest_count} guest" + ("" if answer.guest_count == 1 else "s")
    owned = "externally owned" if answer.flags & _OWNED else "self-owned"
    es = "initialised" if answer.flags & _ES else "not initialised"
    return passed("platform", f"{told}, {guests}, {owned}, SEV-ES {es}")
