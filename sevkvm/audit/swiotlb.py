"""Where a Linux guest's bounce buffer is, by what the kernel itself says.

Source: Linux include/linux/swiotlb.h, kernel/dma/swiotlb.c (v6.1: ``io_tlb_default_mem.start`` and ``end``; since v6.6
in ``io_tlb_default_mem.defpool``, a ``struct io_tlb_pool``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sevkvm.abi.x86 import PAGE_MASK
from sevkvm.errors import BadGuestData
from sevkvm.linux.btf import NBYTES_MAX, Btf
from sevkvm.linux.kallsyms import find_symbols
from sevkvm.linux.space import KernelSpace
from sevkvm.linux.tables import check

if TYPE_CHECKING:
    from sevkvm.linux.space import Memory
    from sevkvm.linux.vmcoreinfo import VmcoreInfo

_SYMBOLS = ("io_tlb_default_mem", "__start_BTF", "__stop_BTF")


class Swiotlb(NamedTuple):
    """Guest-physical memory ``[gpa, end)``, whole pages."""

    gpa: int
    end: int


def find_swiotlb(memory: Memory, info: VmcoreInfo, cbit_pos: int | None, ram_end: int) -> Swiotlb | None:
    """None if the kernel has none. BadGuestData where it does not tell, or what it tells cannot be."""
    space = KernelSpace(memory, check(memory, info, cbit_pos))
    symbols = find_symbols(space, info, _SYMBOLS)
    missing = [name for name in _SYMBOLS if name not in symbols]
    if missing:
        raise BadGuestData(f"the kernel has no symbol {missing[0]}")
    start, stop = symbols["__start_BTF"], symbols["__stop_BTF"]
    if not 0 < stop - start <= NBYTES_MAX:
        raise BadGuestData("the kernel's type information is of no possible size")
    btf = Btf(space.read(start, stop - start))
    at = symbols["io_tlb_default_mem"]
    gpa = space.u64(at + _member(btf, "start"))
    end = space.u64(at + _member(btf, "end"))
    if gpa == end == 0:
        return None
    if not gpa < end <= ram_end or (gpa | end) & PAGE_MASK:
        raise BadGuestData(f"the kernel's swiotlb cannot be at gpa 0x{gpa:x} to 0x{end:x}")
    return Swiotlb(gpa, end)


def _member(btf: Btf, name: str) -> int:
    try:
        return btf.offset("io_tlb_mem", name)
    except BadGuestData:
        return btf.offset("io_tlb_mem", "defpool") + btf.offset("io_tlb_pool", name)
