"""Every guest of this host, and what protects it."""

from __future__ import annotations

from contextlib import ExitStack
from typing import NamedTuple

from sevkvm import errors
from sevkvm.attach.entry import enter
from sevkvm.host import discovery, sevdev
from sevkvm.host.kvm import VmFd
from sevkvm.memory.policy import SevKind, ask_kernel


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


def list_guests(*, timeout: float = 5.0) -> list[GuestSummary]:
    """Every KVM VM on this host.

    What protects it only the kernel knows, so the VMM is attached to, briefly; not where the host has no SEV and the
    VMM no ``/dev/sev`` open: then nothing protects it.
    """
    host_has_sev = sevdev.host_has_sev()
    summaries = []
    for vm_info in discovery.find_vms():
        summary = GuestSummary(
            vm_info.pid, vm_info.vm_fd, vm_info.name, len(vm_info.vcpu_fds), SevKind.NONE.value
        )
        if host_has_sev or vm_info.has_sev_device:
            summary = _ask_protection(summary, timeout)
        summaries.append(summary)
    return summaries


def _ask_protection(summary: GuestSummary, timeout: float) -> GuestSummary:
    try:
        with ExitStack() as stack:
            port, _ = enter(stack, summary.pid, (), timeout)
            info = ask_kernel(VmFd(port, summary.vm_fd))
    except errors.SevKvmError as error:
        return summary._replace(sev="unknown", reason=str(error))
    policy = info.policy
    return summary._replace(
        sev=info.kind.value,
        policy=policy.value if policy else None,
        debug_allowed=policy.debug_allowed if policy else (False if info.kind is SevKind.SEV_SNP else None),
    )
