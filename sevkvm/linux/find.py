"""Find a Linux guest's tables and note, the cheapest way first, and believe nothing that is not proved."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from sevkvm.abi.x86 import PAGE_NBYTES
from sevkvm.errors import BadGuestData
from sevkvm.linux import pointers, sweep
from sevkvm.linux.initstack import kernels
from sevkvm.linux.tables import check

if TYPE_CHECKING:
    from sevkvm.linux.ram import Search
    from sevkvm.linux.vmcoreinfo import VmcoreInfo
    from sevkvm.paging.form import PagingForm


class Kernel(NamedTuple):
    """A kernel's own tables, and its note if it has one."""

    form: PagingForm
    info: VmcoreInfo | None


def find_kernel(search: Search) -> Kernel | None:
    """The guest's kernel with no register to start from; None if there is none to be found.

    A kernel without a note counts only where none has one. BadGuestData if several cannot be told apart: a kernel
    that was left by kexec or a reboot stays in memory until that is used again.
    """
    found: dict[PagingForm, Kernel] = {}
    for kernel in kernels(search):
        info = _believed(search, pointers.notes(search, kernel.form, kernel.data_gva), kernel.form)
        found[kernel.form] = Kernel(kernel.form, info)
    if not found:
        found = _swept(search)
    if any(kernel.info for kernel in found.values()):
        found = {form: kernel for form, kernel in found.items() if kernel.info}
    if len(found) > 1:
        named = ", ".join(
            f"{kernel.info.osrelease if kernel.info else 'one without a note'} at gpa 0x{form.root_gpa:x}"
            for form, kernel in sorted(found.items(), key=lambda item: item[0].root_gpa)
        )
        raise BadGuestData(
            f"the guest's memory holds the page tables of {len(found)} kernels: {named}",
            help="all but one were left behind by a reboot or kexec: name the right one with --cr3",
        )
    return next(iter(found.values()), None)


def find_note(search: Search, forms: Sequence[PagingForm]) -> VmcoreInfo | None:
    """The note of the kernel whose tables (or its processes') are known; None if there is none to be found."""
    kernel_forms = [form for form in _with_kernel_halves(forms) if pointers.maps_kernel(search, form)]
    for form in kernel_forms:
        info = _believed(search, pointers.notes(search, form), form)
        if info is not None:
            return info
    if not kernel_forms:
        return None  # no Linux, or none yet: RAM would be read for nothing
    for batch in sweep.notes(search):
        for form in kernel_forms:
            info = _believed(search, batch, form)
            if info is not None:
                return info
    return None


def _with_kernel_halves(forms: Sequence[PagingForm]) -> list[PagingForm]:
    """A vCPU in user mode may run on tables that leave the kernel out; the whole ones lie one page below.

    Source: Linux arch/x86/entry/calling.h (PTI_USER_PGTABLE_BIT), v6.1.
    """
    forms = [form for form in forms if form.mode.long]
    below = [
        replace(form, root_gpa=form.root_gpa - PAGE_NBYTES) for form in forms if form.root_gpa & PAGE_NBYTES
    ]
    return [*forms, *below]


def _swept(search: Search) -> dict[PagingForm, Kernel]:
    """The kernels whose notes lie in the first chunk of RAM that has one to be believed."""
    found: dict[PagingForm, Kernel] = {}
    for batch in sweep.notes(search):
        for info in batch:
            try:
                form = check(search.memory, info, search.cbit_pos)
            except BadGuestData as error:
                search.refuse(error.message)
            else:
                found.setdefault(form, Kernel(form, info))
        if found:
            break
    return found


def _believed(search: Search, infos: Iterable[VmcoreInfo], reference: PagingForm) -> VmcoreInfo | None:
    """The first that is the note of the kernel with these tables."""
    for info in infos:
        try:
            check(search.memory, info, search.cbit_pos, reference)
        except BadGuestData as error:
            search.refuse(error.message)
        else:
            return info
    return None
