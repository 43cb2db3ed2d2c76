"""What a compressed dump says of the guest's kernel: found in its memory, or told to be missing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sevkvm import errors
from sevkvm.cli.run import warn

if TYPE_CHECKING:
    from sevkvm.dump import KernelFacts
    from sevkvm.guest import Guest
    from sevkvm.linux.vmcoreinfo import VmcoreInfo
    from sevkvm.paging.form import PagingForm


def facts_of(guest: Guest) -> KernelFacts | None:
    """From the guest's VMCOREINFO; None, with a warning, where none can be found."""
    from sevkvm.dump import kernel_facts

    try:
        info = guest.vmcoreinfo()
        why = "no Linux kernel's VMCOREINFO was found in the guest"
    except errors.SevKvmError as reason:
        info, why = None, reason.message
    if info is None:
        warn(f"{why}: drgn and libkdumpfile will refuse the file, which names no system")
        return None
    form = _kernel_form(guest, info)
    return kernel_facts(info.text, lambda gva, nbytes: guest.read_virtual(gva, nbytes, form))


def _kernel_form(guest: Guest, info: VmcoreInfo) -> PagingForm | None:
    """The kernel's own tables: a vCPU may be in a process that maps little of the kernel."""
    from sevkvm.linux.tables import check

    try:
        return check(guest.memory, info, guest.sev.cbit_pos if guest.sev.encrypted else None)
    except errors.BadGuestData:
        return None  # an old kernel does not say where they are
