"""ELF64 core files for x86-64: headers, notes and the two register notes that readers of a VM's core know.

Source: System V ABI, chapters 4 and 5; ``struct elf_prstatus`` and ``struct user_regs_struct`` of Linux
include/linux/elfcore.h and arch/x86/include/asm/user_64.h (v6.18); the ``QEMU`` note as QEMU 7.2 writes it
(target/i386/arch_dump.c), compared with a live QEMU in tests/kvm/test_dump_qemu.py.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sevkvm.abi.kvm import Dtable, Regs, Segment, Sregs

EHDR: Final = struct.Struct("<16sHHIQQQIHHHHHH")
PHDR: Final = struct.Struct("<IIQQQQQQ")
NHDR: Final = struct.Struct("<III")
_IDENT: Final = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")  # 64-bit, little-endian, version 1

ET_CORE: Final = 4
EM_X86_64: Final = 62
PT_LOAD: Final = 1
PT_NOTE: Final = 4
NT_PRSTATUS: Final = 1
SEVKVM_NOTE: Final = b"SEVKVM"  # ours; readers skip notes whose name they do not know
NT_SEVKVM_LIVE: Final = 1
MAX_PHDRS: Final = 0xFFFE  # 0xffff is PN_XNUM: the count would be in a section header

_PRSTATUS: Final = struct.Struct("<32xI76x27Q8x")
_QEMU_SEGMENT: Final = struct.Struct("<IIIIQ")
QEMU_NOTE_VERSION: Final = 1
QEMU_STATE_NBYTES: Final = 0x1B8


@dataclass(frozen=True, slots=True)
class Phdr:
    """One program header; ``align`` is 0 as in QEMU's cores (crash tells the kind of file by it)."""

    type: int
    offset: int
    vaddr: int
    paddr: int
    nbytes: int
    align: int = 0

    def pack(self) -> bytes:
        """The 56 bytes of ``Elf64_Phdr``; file size and memory size are the same, flags are 0."""
        return PHDR.pack(
            self.type, 0, self.offset, self.vaddr, self.paddr, self.nbytes, self.nbytes, self.align
        )


def core_headers(phdrs: Sequence[Phdr]) -> bytes:
    """ELF header and program headers of a core, the latter at offset 64: makedumpfile ignores ``e_phoff``."""
    ehdr = EHDR.pack(
        _IDENT, ET_CORE, EM_X86_64, 1, 0, EHDR.size, 0, 0, EHDR.size, PHDR.size, len(phdrs), 0, 0, 0
    )
    return ehdr + b"".join(phdr.pack() for phdr in phdrs)


def pack_note(name: bytes, note_type: int, description: bytes) -> bytes:
    """One note, its name (NUL-terminated) and description each padded to 4 bytes."""
    name += b"\0"
    head = NHDR.pack(len(name), len(description), note_type)
    return head + name + bytes(-len(name) % 4) + description + bytes(-len(description) % 4)


def pack_prstatus(pid: int, regs: Regs, sregs: Sregs) -> bytes:
    """``struct elf_prstatus`` (336 bytes) of a thread ``pid``: registers only, no signal, no times."""
    r, s = regs, sregs
    orig_rax = 0  # a vCPU is in no system call of the host
    return _PRSTATUS.pack(
        pid,
        *(r.r15, r.r14, r.r13, r.r12, r.rbp, r.rbx, r.r11, r.r10, r.r9, r.r8),
        *(r.rax, r.rcx, r.rdx, r.rsi, r.rdi, orig_rax, r.rip, s.cs.selector, r.rflags),
        *(r.rsp, s.ss.selector, s.fs.base, s.gs.base),
        *(s.ds.selector, s.es.selector, s.fs.selector, s.gs.selector),
    )


def pack_qemu_state(regs: Regs, sregs: Sregs, kernel_gs_base: int | None = None) -> bytes:
    """The ``QEMU`` note's description: 0x1b8 bytes, or 0x1b0 when ``kernel_gs_base`` is not known.

    The state's own ``size`` field says which; readers take the last field as absent when it does not reach it.
    """
    nbytes = QEMU_STATE_NBYTES - (8 if kernel_gs_base is None else 0)
    s = sregs
    data = struct.pack("<II", QEMU_NOTE_VERSION, nbytes) + regs.pack()  # the order is KVM's
    for segment in (s.cs, s.ds, s.es, s.fs, s.gs, s.ss, s.ldt, s.tr):
        data += _QEMU_SEGMENT.pack(
            segment.selector, segment.limit, descriptor_flags(segment), 0, segment.base
        )
    for table in (s.gdt, s.idt):
        data += _pack_table(table)
    data += struct.pack("<5Q", s.cr0, 0, s.cr2, s.cr3, s.cr4)
    return data if kernel_gs_base is None else data + struct.pack("<Q", kernel_gs_base)


def descriptor_flags(segment: Segment) -> int:
    """A segment's attributes where the upper half of its descriptor has them (bits 8 to 15 and 20 to 23)."""
    present = segment.present and not segment.unusable
    return (
        segment.type << 8
        | segment.s << 12
        | segment.dpl << 13
        | int(present) << 15
        | segment.avl << 20
        | segment.l << 21
        | segment.db << 22
        | segment.g << 23
    )


def _pack_table(table: Dtable) -> bytes:
    return _QEMU_SEGMENT.pack(0, table.limit, 0, 0, table.base)
