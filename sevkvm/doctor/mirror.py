"""Could the VMM be left alone: is what a mirror VM needs there? Without making one.

Source of the rules: Linux arch/x86/kvm/svm/sev.c, sev_vm_copy_enc_context_from, is_cmd_allowed_from_mirror (v6.18).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sevkvm import errors
from sevkvm.doctor import kernel
from sevkvm.doctor.finding import Finding, passed, skipped
from sevkvm.host.ramview import RamView

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sevkvm.doctor.machine import Machine
    from sevkvm.host.discovery import VmInfo
    from sevkvm.host.slots import RawSlot

_SINCE: Final = (5, 15)  # debug commands on mirrors: commit 5b92b6ca92b6
_SHARE_HELP: Final = "give QEMU its RAM as -object memory-backend-memfd,share=on"


def examine(machine: Machine, vm: VmInfo, found: Sequence[RawSlot]) -> Iterator[Finding]:
    """Nothing for a VMM without ``/dev/sev``, which has no encrypted guest that could be mirrored."""
    if not vm.has_sev_device:
        return
    since = kernel.at_least(machine.release(), _SINCE)
    if since is False:
        yield skipped(
            "mirror", f"not open: Linux {machine.release()} has no debug commands on mirror VMs (5.15)"
        )
    elif not machine.may_use(machine.dev / "kvm"):
        yield skipped("mirror", "not open: a VM of our own cannot be made without /dev/kvm")
    elif not found:
        yield skipped("mirror", "cannot be told: it is not known where guest memory is")
    else:
        yield _memory(machine, vm, found)


def _memory(machine: Machine, vm: VmInfo, found: Sequence[RawSlot]) -> Finding:
    view = RamView(vm.pid, machine.proc)
    try:
        hidden = [(slot, why) for slot in found if (why := view.why_not(slot.hva, slot.nbytes)) is not None]
    except errors.SevKvmError as error:
        return skipped("mirror", f"cannot be told: {error}")
    largest = max(found, key=lambda slot: slot.nbytes)
    if any(slot == largest for slot, _ in hidden):
        why = dict(hidden)[largest]
        return skipped("mirror", f"not open: guest RAM at gpa 0x{largest.gpa:x}: {why}", _SHARE_HELP)
    rest = sum(slot.nbytes for slot, _ in hidden)
    but = f", all but 0x{rest:x} bytes of ROM and the like" if rest else ""
    return passed("mirror", f"guest RAM is in shared memory{but}: --via mirror leaves the VMM alone")
