"""The kernel's tables without registers and without a note: by the first task's stack.

An x86-64 kernel's writable data begins at a multiple of 2 MiB (the image is loaded at one, and memory of different
rights is kept in large pages of its own) with the first task's stack, whose lowest word is STACK_END_MAGIC, and its
top page table follows soon after. So one page in 512 tells where a kernel is, and a table that maps itself, and
that stack, where the kernel's data is mapped, is its top table.
Source: Linux arch/x86/kernel/vmlinux.lds.S, head_64.S, include/uapi/linux/magic.h (v6.1, v6.12).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

from sevkvm.abi.x86 import PAGE_NBYTES, PTE_ADDRESS_MASK, PTE_P, PTE_PS
from sevkvm.errors import BadGuestData
from sevkvm.linux.pointers import IMAGE_NBYTES
from sevkvm.linux.tables import check_root, proved
from sevkvm.linux.vmcoreinfo import START_KERNEL_MAP
from sevkvm.paging.form import MIN_CBIT, PagingForm, PagingMode
from sevkvm.paging.walk import Walker

if TYPE_CHECKING:
    from sevkvm.linux.ram import Search

STACK_END_MAGIC: Final = 0x57AC_6E9D
STRIDE_NBYTES: Final = 2 << 20
SAMPLES_MAX: Final = 1 << 15  # of a guest of 64 GiB all; of a larger one those, or until a kernel is found
_HEAD: Final = struct.Struct("<QQ")  # a firmware command reads whole blocks of 16 bytes
_TABLE: Final = struct.Struct("<512Q")
# A guest may put stacks and tables everywhere; a stack of some other task is at a sample once in 512.
_STACKS_MAX: Final = 256
_CANDIDATES_MAX: Final = 16  # of top tables behind one stack: each is walked from several hundred times


class KernelData(NamedTuple):
    """A kernel's top table, and where the data it lies in is mapped."""

    form: PagingForm
    data_gva: int


def kernels(search: Search) -> Iterator[KernelData]:
    """Every kernel whose data begins at a sample, in ascending order of gpa."""
    found, stacks = False, 0
    for number, gpa in enumerate(_samples(search)):
        if found and number >= SAMPLES_MAX:
            return
        head = search.peek(gpa, _HEAD.size)
        if len(head) < _HEAD.size:
            if not search.searched_all:
                return
            continue
        if _HEAD.unpack(head)[0] == STACK_END_MAGIC:
            stacks += 1
            if stacks > _STACKS_MAX:
                search.refuse("more stacks at multiples of 2 MiB than any guest has")
                return
            for kernel in _behind(search, gpa):
                found = True
                yield kernel


def _samples(search: Search) -> Iterator[int]:
    for slot in search.memory.slots:
        if not slot.readonly:
            yield from range(-(-slot.gpa // STRIDE_NBYTES) * STRIDE_NBYTES, slot.end, STRIDE_NBYTES)


def _behind(search: Search, stack_gpa: int) -> Iterator[KernelData]:
    """The kernel whose first stack is at ``stack_gpa``: its top table within the next 2 MiB; at most one."""
    tried = 0
    stray: set[int] = set()
    for gpa, data in search.chunks(stack_gpa, stack_gpa + STRIDE_NBYTES):
        for at in range(0, len(data), PAGE_NBYTES):
            entries = _TABLE.unpack_from(data, at)
            stray |= _stray_bits(search, entries)
            if not _looks_like_top(entries, search.cbit_pos):
                continue
            tried += 1
            if tried > _CANDIDATES_MAX:
                search.refuse(f"gpa 0x{stack_gpa:x}: more tables behind this stack than any kernel has")
                return
            kernel = _kernel(search, gpa + at, stack_gpa)
            if kernel is not None:
                yield kernel
                return
    why = f"gpa 0x{stack_gpa:x}: a stack, but no page tables of a kernel behind it"
    if len(stray) == 1:
        why += f" unless the C-bit is bit {stray.pop()}"
    search.refuse(why)


def _stray_bits(search: Search, entries: tuple[int, ...]) -> set[int]:
    """The bit that all entries of the kernel's half have beyond RAM: the C-bit of a guest that is said to have another.

    Empty where there is no such bit.
    """
    upper = [entry & PTE_ADDRESS_MASK for entry in entries[256:] if entry & PTE_P]
    bits = {address.bit_length() - 1 for address in upper if search.memory.slots.find(address) is None}
    bits = {bit for bit in bits if bit >= MIN_CBIT and bit != search.cbit_pos}
    if len(bits) != 1 or len(upper) < 2 or not entries[511] & PTE_P:
        return set()
    (bit,) = bits
    return bits if all(search.memory.slots.find(address & ~(1 << bit)) for address in upper) else set()


def _looks_like_top(entries: tuple[int, ...], cbit_pos: int | None) -> bool:
    """A table for the kernel's image and more: a level below the top maps the image alone."""
    cbit = 0 if cbit_pos is None else 1 << cbit_pos
    last = entries[511]
    if last & (PTE_P | PTE_PS | cbit) != PTE_P | cbit:
        return False
    upper = [entry for entry in entries[256:511] if entry & PTE_P]
    return bool(upper) and all(entry & cbit == cbit for entry in upper)


def _kernel(search: Search, root_gpa: int, stack_gpa: int) -> KernelData | None:
    # five first: below their top is a table that, taken for a top of four, maps the image too
    for mode in (PagingMode.LEVEL5, PagingMode.LEVEL4):
        form = PagingForm(mode, root_gpa, search.cbit_pos)
        walker = Walker(search.memory, form)
        for gva in range(START_KERNEL_MAP, START_KERNEL_MAP + IMAGE_NBYTES, STRIDE_NBYTES):
            if proved(walker.translate(gva), search.cbit_pos) != stack_gpa:
                continue
            own = walker.translate(gva + root_gpa - stack_gpa)
            if proved(own, search.cbit_pos) != root_gpa:
                break
            try:
                check_root(search.memory, form, f"the stack at gpa 0x{stack_gpa:x}")
            except BadGuestData as error:
                search.refuse(error.message)
                break
            return KernelData(form, gva)
    return None
