"""Checks of what KVM and the firmware say: encrypted at all, SEV-ES, and whether debugging is really refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sevkvm import errors
from sevkvm.abi.sev import BLOCK_NBYTES, FwStatus
from sevkvm.memory.policy import SevKind
from sevkvm.verify.report import Check, Outcome

if TYPE_CHECKING:
    from sevkvm.guest import Guest

_NAMES: Final = {SevKind.SEV: "SEV", SevKind.SEV_ES: "SEV-ES", SevKind.SEV_SNP: "SEV-SNP"}


def encrypted_check(guest: Guest) -> Check:
    """KVM says that the guest is encrypted."""
    title = "KVM says that the guest is encrypted"
    kind, policy = guest.sev.kind, guest.sev.policy
    if kind is SevKind.NONE:
        return Check("encrypted", title, Outcome.FAIL, ("it is a VM without SEV",), True)
    told = _NAMES[kind] + (f", policy 0x{policy.value:x}" if policy else "")
    return Check("encrypted", title, Outcome.PASS, (told,), True)


def es_check(guest: Guest) -> Check:
    """``--require es``."""
    title = "registers are encrypted (SEV-ES)"
    encrypted = guest.sev.kind in (SevKind.SEV_ES, SevKind.SEV_SNP)
    told = _NAMES.get(guest.sev.kind, "a VM without SEV")
    return Check("es", title, Outcome.PASS if encrypted else Outcome.FAIL, (f"it is {told}",), True)


def debug_check(guest: Guest) -> Check:
    """Decryption is allowed: without it no plaintext can be shown."""
    title = "the debug path may be used"
    policy = guest.sev.policy
    if guest.sev.kind is SevKind.SEV_SNP:
        why = "Linux has no way to decrypt a SEV-SNP guest's memory"
        return Check("debug", title, Outcome.FAIL, (why,), True)
    if policy is not None and not policy.debug_allowed:
        why = f"policy 0x{policy.value:x} forbids debugging; if that is what you want: --require nodebug"
        return Check("debug", title, Outcome.FAIL, (why,), True)
    return Check("debug", title, Outcome.PASS, ("the policy allows debugging",), True)


def nodebug_check(guest: Guest) -> Check:
    """``--require nodebug``: the policy forbids debugging, and the firmware keeps to it."""
    title = "debugging is forbidden, and refused"
    policy = guest.sev.policy
    if not guest.sev.encrypted:
        return Check("nodebug", title, Outcome.FAIL, ("it is a VM without SEV",), True)
    if policy is None:
        return Check("nodebug", title, Outcome.SKIP, ("Linux does not tell a SEV-SNP guest's policy",), True)
    said = f"policy 0x{policy.value:x}"
    if policy.debug_allowed:
        return Check("nodebug", title, Outcome.FAIL, (f"{said} allows debugging",), True)
    outcome, told = _try_debug(guest)
    return Check("nodebug", title, outcome, (f"{said} forbids it", told), True)


def _try_debug(guest: Guest) -> tuple[Outcome, str]:
    """Ask for 16 bytes."""
    slot = next(iter(guest.slots), None)
    if slot is None:
        return Outcome.SKIP, "it could not be tried: the memory layout is not known (--slot)"
    try:
        guest.memory.read(slot.gpa, BLOCK_NBYTES, private=True)
    except errors.FirmwareError as error:
        if error.status == FwStatus.POLICY_FAILURE:
            return Outcome.PASS, f"DBG_DECRYPT was refused: {error.status_name}"
        return Outcome.SKIP, f"it could not be tried: {error.message}"
    except (errors.IoctlError, errors.MemoryFault) as error:
        return Outcome.SKIP, f"it could not be tried: {error.message}"
    return Outcome.FAIL, "but DBG_DECRYPT was carried out"
