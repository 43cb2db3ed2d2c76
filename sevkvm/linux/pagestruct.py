"""From a ``struct page`` to the page it describes: the kernel's array of them, as VMCOREINFO tells it.

Source: Linux mm/sparse.c, include/linux/mmzone.h (v6.1, v6.12): with SPARSEMEM_VMEMMAP, which x86-64 always has, each
section's ``section_mem_map`` less its flags is where the array would have the page at gpa 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sevkvm.abi.x86 import MAX_PHYS_BIT, PAGE_SHIFT
from sevkvm.errors import BadGuestData

if TYPE_CHECKING:
    from sevkvm.linux.space import KernelSpace
    from sevkvm.linux.vmcoreinfo import VmcoreInfo

_FLAGS_MASK: Final = 0xFFFF  # of section_mem_map; the array begins at a multiple of far more
_SECTION_HAS_MEM_MAP: Final = 1 << 1
_SECTIONS_TRIED: Final = 256  # of the first root, which has as many as fit a page


class PageStructs:
    """``lru_offset``: of the list head in a struct page. BadGuestData where the note does not tell."""

    def __init__(self, space: KernelSpace, info: VmcoreInfo) -> None:
        self.lru_offset = _number(info, "OFFSET(page.lru)")
        self._nbytes = _number(info, "SIZE(page)")
        if not 0 < self._nbytes <= 1 << 12:
            raise BadGuestData(f"a struct page of {self._nbytes} bytes")
        self._start = _array(space, info)

    def gpa(self, page_gva: int) -> int:
        """The page that the ``struct page`` at ``page_gva`` describes; BadGuestData for what is none."""
        number, rest = divmod(page_gva - self._start, self._nbytes)
        if rest or not 0 <= number < 1 << MAX_PHYS_BIT - PAGE_SHIFT:
            raise BadGuestData(f"0x{page_gva:x} is no struct page")
        return number << PAGE_SHIFT

    def gva(self, gpa: int) -> int:
        """Where the ``struct page`` of the page at ``gpa`` is."""
        return self._start + (gpa >> PAGE_SHIFT) * self._nbytes


def _array(space: KernelSpace, info: VmcoreInfo) -> int:
    roots_gva = info.symbols.get("mem_section")
    if roots_gva is None:
        raise BadGuestData("the kernel's note does not say where mem_section is")
    section_nbytes = _number(info, "SIZE(mem_section)")
    offset = _number(info, "OFFSET(mem_section.section_mem_map)")
    sections_gva = space.u64(roots_gva)  # the root of the lowest sections: there is memory at gpa 0
    for number in range(_SECTIONS_TRIED):
        word = space.u64(sections_gva + number * section_nbytes + offset)
        if word & _SECTION_HAS_MEM_MAP:
            return word & ~_FLAGS_MASK
    raise BadGuestData("mem_section tells of no memory")


def _number(info: VmcoreInfo, key: str) -> int:
    value = info.values.get(key, "")
    if not value.isdecimal() or len(value) > 6:
        raise BadGuestData(f"the kernel's note does not say {key}")
    return int(value)
