"""Every guest of this host, and what protects it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sevkvm import errors
from sevkvm.attach.entry import enter
from sevkvm.attach.options import AttachOptions, Needs
from sevkvm.attach.told import MonitorFacts
from sevkvm.host import discovery, sevdev
from sevkvm.memory.policy import SevKind

if TYPE_CHECKING:
    from sevkvm.host.discovery import VmInfo


class GuestSummary(NamedTuple):
    """One line of ``sevkvm list``; ``sev`` is ``unknown`` where ``reason`` says why it could not be asked."""

    pid: int
    vm_fd: int
    name: str
    vcpus: int
    sev: str
    policy: int | None = None
    debug_allowed: bool | None = None
    reason: str | None = None


def list_guests(*, timeout: float = 5.0, via: str | None = None) -> list[GuestSummary]:
    """Every KVM VM on this host.

    What protects it only the kernel knows, so the VMM is attached to, briefly, unless a mirror can be made; not where
    the host has no SEV and the VMM no ``/dev/sev`` open: then nothing protects it. ``via`` as in AttachOptions.
    """
    host_has_sev = sevdev.host_has_sev()
    summaries = []
    for vm_info in discovery.find_vms():
        summary = GuestSummary(
            vm_info.pid, vm_info.vm_fd, vm_info.name, len(vm_info.vcpu_fds), SevKind.NONE.value
        )
        if host_has_sev or vm_info.has_sev_device:
            summary = _ask_protection(summary, vm_info, AttachOptions(timeout=timeout, via=via))
        summaries.append(summary)
    return summaries


def _ask_protection(summary: GuestSummary, vm_info: VmInfo, options: AttachOptions) -> GuestSummary:
    try:
        way = enter(vm_info, MonitorFacts(), options, Needs.STATUS)
        way.close()
    except errors.SevKvmError as error:
        return summary._replace(sev="unknown", reason=str(error))
    info = way.info
    policy = info.policy
    return summary._replace(
        sev=info.kind.value,
        policy=policy.value if policy else None,
        debug_allowed=policy.debug_allowed if policy else (False if info.kind is SevKind.SEV_SNP else None),
    )
