"""May we? What protects a guest, and whether its owner lets the host look inside."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from sevkvm import errors
from sevkvm.abi.policy import Policy

if TYPE_CHECKING:
    from sevkvm.host.kvm import VmFd


class SevKind(str, Enum):
    """What protects a guest, as ``--json`` spells it."""

    NONE = "none"
    SEV = "sev"
    SEV_ES = "sev-es"
    SEV_SNP = "sev-snp"


@dataclass(frozen=True)
class SevInfo:
    """A guest's protection. ``policy``, ``handle`` and ``state`` are None unless the kernel told them.

    ``cbit_source`` says who told the C-bit position: ``option``, ``qmp``, ``guest-cpuid`` or ``host-cpuid``.
    """

    kind: SevKind
    policy: Policy | None = None
    handle: int | None = None
    state: int | None = None
    cbit_pos: int | None = None
    cbit_source: str | None = None

    @property
    def encrypted(self) -> bool:
        """Memory has private pages."""
        return self.kind is not SevKind.NONE


def ask_kernel(vm: VmFd) -> SevInfo:
    """What protects this VM, from KVM_SEV_GUEST_STATUS (it changes nothing and needs no debug policy)."""
    try:
        status = vm.sev_guest_status()
    except errors.IoctlError as error:
        # In the kernel's order of checks: not an encrypted VM (or no kvm_amd), then SNP.
        if error.errno == errno.ENOTTY:
            return SevInfo(SevKind.NONE)
        if error.errno == errno.EPERM:
            return SevInfo(SevKind.SEV_SNP)
        raise
    policy = Policy(status.policy)
    kind = SevKind.SEV_ES if policy.es else SevKind.SEV
    return SevInfo(kind, policy, status.handle, status.state)


def require_debug(info: SevInfo) -> None:
    """Raise DebugForbidden or PlatformUnsupported unless this guest's memory may be read."""
    if info.kind is SevKind.SEV_SNP:
        raise errors.PlatformUnsupported(
            "this is a SEV-SNP guest: the kernel offers no way to decrypt its memory for the host",
            help="KVM answers EPERM to every SEV debug command on SNP guests; look from inside the guest instead",
        )
    if info.policy is not None and not info.policy.debug_allowed:
        raise errors.DebugForbidden(
            f"the guest's policy 0x{info.policy.value:x} forbids debugging (NODBG)",
            policy=info.policy.value,
            help="the policy is fixed at launch: restart the guest without bit 0, for example "
            "`-object sev-guest,...,policy=0x0` (QEMU's default is 0x1)",
        )
