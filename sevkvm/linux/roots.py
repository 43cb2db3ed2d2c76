"""The top page table of every address space of a Linux guest, not only of those that vCPUs run on.

The kernel keeps the top tables of all processes in one list, since a change of its own half concerns each of them:
``pgd_list``, through ``struct page.lru``. A process's memory whose last user is gone but that a kernel thread still
runs on is in it, too, which the list of tasks would not show.
Source: Linux arch/x86/mm/pgtable.c, arch/x86/mm/fault.c, arch/x86/realmode/init.c, arch/x86/platform/efi/efi_64.c,
arch/x86/mm/pti.c (v6.1, v6.12); arch/x86/include/asm/cpufeatures.h for X86_FEATURE_PTI.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from sevkvm.abi.x86 import PAGE_NBYTES
from sevkvm.errors import BadGuestData
from sevkvm.linux.btf import NBYTES_MAX, Btf
from sevkvm.linux.kallsyms import find_symbols
from sevkvm.linux.pagestruct import PageStructs
from sevkvm.linux.space import KernelSpace
from sevkvm.linux.tables import check

if TYPE_CHECKING:
    from sevkvm.linux.space import Memory
    from sevkvm.linux.vmcoreinfo import VmcoreInfo
    from sevkvm.paging.form import PagingForm

_SYMBOLS: Final = ("pgd_list", "efi_mm", "real_mode_header", "boot_cpu_data", "__start_BTF", "__stop_BTF")
_ROOTS_MAX: Final = 1 << 20
_PTI_WORD: Final = 7
_PTI_BIT: Final = 11


@dataclass(frozen=True)
class Roots:
    """``forms``: every address space. ``unknown``: those that could not be looked for, in words."""

    forms: tuple[PagingForm, ...]
    unknown: tuple[str, ...]


def find_roots(
    memory: Memory, info: VmcoreInfo, cbit_pos: int | None, known: Sequence[PagingForm] = ()
) -> Roots:
    """Every address space of the kernel whose note this is; ``known``: those that vCPUs run on, which are included.

    BadGuestData where the list of processes' tables cannot be found or followed. Only with the kernel's symbol table
    and type information can what is not a process's be found; without them ``unknown`` says so.
    """
    form = check(memory, info, cbit_pos)
    space = KernelSpace(memory, form)
    unknown: list[str] = []
    try:
        symbols = find_symbols(space, info, _SYMBOLS)
    except BadGuestData as error:
        symbols = {}
        unknown.append(error.message)
    gpas = {form.root_gpa, *_processes(space, info, symbols.get("pgd_list"), known)}
    if symbols:
        try:
            kept = _Kept(space, symbols)
            others = kept.others()
            isolated = kept.isolated()
        except BadGuestData as error:
            unknown.append(error.message)
        else:
            gpas |= {gpa + PAGE_NBYTES for gpa in gpas if isolated} | others
    found = [replace(form, root_gpa=gpa) for gpa in sorted(gpas - {each.root_gpa for each in known})]
    return Roots((*known, *found), tuple(unknown))


def _processes(
    space: KernelSpace, info: VmcoreInfo, head_gva: int | None, known: Sequence[PagingForm]
) -> set[int]:
    """The gpa of each process's top table.

    The list is a ring: without its head's address, it is entered where a vCPU runs on one of its tables.
    """
    pages = PageStructs(space, info)
    if head_gva is not None:
        return _ring(space, pages, head_gva, heads=0)
    for form in known:
        entry_gva = pages.gva(form.root_gpa & ~PAGE_NBYTES) + pages.lru_offset
        try:
            return _ring(space, pages, entry_gva, heads=1) | {form.root_gpa & ~PAGE_NBYTES}
        except BadGuestData:
            continue  # the kernel's own tables are in no list
    raise BadGuestData("the list of the processes' page tables (pgd_list) cannot be found")


def _ring(space: KernelSpace, pages: PageStructs, start_gva: int, *, heads: int) -> set[int]:
    """The pages in a list from ``start_gva`` around to it, with so many members between them that are no pages."""
    gpas: set[int] = set()
    node = space.u64(start_gva)
    while node != start_gva:
        try:
            gpa = pages.gpa(node - pages.lru_offset)
        except BadGuestData:
            heads -= 1
            if heads < 0:
                raise
        else:
            if gpa in gpas or len(gpas) >= _ROOTS_MAX:
                raise BadGuestData("the list of the processes' page tables does not come around")
            gpas.add(gpa)
        node = space.u64(node)
    if heads:
        raise BadGuestData("a list of one page alone")
    return gpas


class _Kept:
    """Tables that single variables of the kernel lead to."""

    def __init__(self, space: KernelSpace, symbols: dict[str, int]) -> None:
        self._space = space
        self._symbols = symbols
        start, stop = symbols.get("__start_BTF"), symbols.get("__stop_BTF")
        if start is None or stop is None or not 0 < stop - start <= NBYTES_MAX:
            raise BadGuestData("the kernel carries no type information (CONFIG_DEBUG_INFO_BTF)")
        self._btf = Btf(space.read(start, stop - start))

    def isolated(self) -> bool:
        """Does each top table have a second one a page above, for user mode (page-table isolation)?"""
        gva = self._symbols.get("boot_cpu_data")
        if gva is None:
            raise BadGuestData("the kernel does not say where boot_cpu_data is")
        at = gva + self._btf.offset("cpuinfo_x86", "x86_capability") + 4 * _PTI_WORD
        return bool(int.from_bytes(self._space.read(at, 4), "little") >> _PTI_BIT & 1)

    def others(self) -> set[int]:
        """Those of EFI's services, and those that processors start with."""
        found = set()
        if "efi_mm" in self._symbols:
            pgd_gva = self._space.u64(self._symbols["efi_mm"] + self._btf.offset("mm_struct", "pgd"))
            if pgd_gva:
                found.add(self._space.gpa(pgd_gva))
        if "real_mode_header" in self._symbols:
            header = self._space.u64(self._symbols["real_mode_header"])
            if header:
                at = header + self._btf.offset("real_mode_header", "trampoline_pgd")
                found.add(int.from_bytes(self._space.read(at, 4), "little"))
        return found
