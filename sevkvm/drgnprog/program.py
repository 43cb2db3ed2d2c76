"""A drgn.Program whose memory is a guest's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import drgn

from sevkvm import errors
from sevkvm.drgnprog.memory import ProgramMemory
from sevkvm.paging.form import PagingForm, PagingMode

if TYPE_CHECKING:
    from sevkvm.guest import Guest
    from sevkvm.linux.vmcoreinfo import VmcoreInfo

_NO_KERNEL: Final = (
    "a Linux from 4.11 on keeps one; where registers are unknown --cr3 names its page tables, and --search-limit lets "
    "more be searched. `sevkvm x` and `sevkvm search` need no kernel"
)


def kernel_note(guest: Guest) -> VmcoreInfo:
    """The VMCOREINFO, without which drgn knows no page tables; BadGuestData where there is none."""
    note = guest.vmcoreinfo()
    if note is None:
        raise errors.BadGuestData(
            "no Linux kernel's VMCOREINFO was found in the guest's memory, which drgn needs", help=_NO_KERNEL
        )
    return note


def program_memory(guest: Guest, note: VmcoreInfo, max_age: float) -> ProgramMemory:
    """The guest's memory for drgn; ``max_age`` as there."""
    cbit_pos = guest.sev.cbit_pos if guest.sev.encrypted else None
    root = note.root_gpa
    if root is None:  # a kernel that does not say phys_base; drgn asks a table for it, as we do
        root = guest.translate(note.swapper_gva).gpa or 0
    return ProgramMemory(
        guest.memory, PagingForm(PagingMode(note.levels), root, cbit_pos), drgn.FaultError, max_age
    )


def make_program(guest: Guest, note: VmcoreInfo, memory: ProgramMemory) -> drgn.Program:
    """The program; live, unless the guest is a dump."""
    program = drgn.Program(drgn.Platform(drgn.Architecture.X86_64))
    program.set_linux_kernel_custom(note.text, guest.pid is not None)
    serve(program, guest, memory)
    return program


def serve(program: drgn.Program, guest: Guest, memory: ProgramMemory) -> None:
    """From here on ``program`` reads physical memory through ``memory``, whatever it had before."""
    bases = [0]
    if guest.sev.encrypted and guest.sev.cbit_pos is not None:
        bases.append(1 << guest.sev.cbit_pos)
    for slot in guest.slots:
        for base in bases:
            program.add_memory_segment(base + slot.gpa, slot.nbytes, memory.read, True)
