"""The notes of a core file, from the registers of a guest's vCPUs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from sevkvm.abi import elf

if TYPE_CHECKING:
    from sevkvm.vcpu import VcpuState


_LIVE: Final = b"The guest ran while this was copied: it is not one moment in time.\n"


def core_notes(states: Sequence[VcpuState], vmcoreinfo: bytes = b"", *, live: bool = False) -> bytes:
    """NT_PRSTATUS of every vCPU, then the ``QEMU`` note of every vCPU, then the kernel's ``VMCOREINFO``.

    Empty when nothing of that is known: registers as zeros would be taken for registers. ``live``: the last one says,
    to programs and people, that the guest ran meanwhile.

    Thread numbers are vCPU index + 1, as in QEMU's cores: a debugger takes thread 0 for none.
    """
    prstatus = [
        elf.pack_note(b"CORE", elf.NT_PRSTATUS, elf.pack_prstatus(state.index + 1, state.regs, state.sregs))
        for state in states
    ]
    qemu = [
        elf.pack_note(b"QEMU", 0, elf.pack_qemu_state(state.regs, state.sregs, state.kernel_gs_base))
        for state in states
    ]
    linux = [elf.pack_note(b"VMCOREINFO", 0, vmcoreinfo)] if vmcoreinfo else []
    ours = [elf.pack_note(elf.SEVKVM_NOTE, elf.NT_SEVKVM_LIVE, _LIVE)] if live else []
    return b"".join(prstatus + qemu + linux + ours)
