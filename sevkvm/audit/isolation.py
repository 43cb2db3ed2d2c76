"""Is page-table isolation on? By the tables alone.

With it each top table has a second one a page above, for user mode, which has little of the kernel's half: the entry
code and what it needs, partly by the very same tables. Source: Linux arch/x86/mm/pti.c, arch/x86/include/asm/pgtable.h
(kernel_to_user_pgdp), v6.1.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from sevkvm.abi import x86
from sevkvm.audit.report import Place
from sevkvm.audit.rules import FIVE_LEVEL, ISOLATION

if TYPE_CHECKING:
    from sevkvm.audit.scene import Scene
    from sevkvm.paging.fetch import TableReader
    from sevkvm.paging.form import PagingForm

_TABLE: Final = struct.Struct("<512Q")
_CHANGING: Final = x86.PTE_A | x86.PTE_D


def examine(scene: Scene) -> None:
    """The paging form as facts."""
    for form in scene.forms:
        if form.levels == 5 and scene.findings.counted(FIVE_LEVEL):
            scene.findings.add(FIVE_LEVEL, FIVE_LEVEL.title, Place(None, form.root_gpa, x86.PAGE_NBYTES))
            break
    if not scene.findings.wants(ISOLATION):
        return
    isolated = [form for form in scene.pages.forms if form.mode.long and is_isolated(scene.memory, form)]
    if scene.findings.counted(ISOLATION):
        told = "page-table isolation is on" if isolated else "page-table isolation is off"
        places = [Place(None, form.root_gpa + x86.PAGE_NBYTES, x86.PAGE_NBYTES) for form in isolated[:1]]
        scene.findings.add(ISOLATION, told, *places)


def is_isolated(reader: TableReader, form: PagingForm) -> bool:
    """Has this kernel's top table a second one, for user mode?"""
    if form.root_gpa & x86.PAGE_NBYTES:
        return False
    kernel, user = reader.read_tables([form.root_gpa, form.root_gpa + x86.PAGE_NBYTES])
    if kernel is None or user is None:
        return False
    return _less(reader, form, kernel, user, form.levels)


def _less(reader: TableReader, form: PagingForm, kernel: bytes, user: bytes, level: int) -> bool:
    """Does ``user`` map less than ``kernel``, and part of it by the same tables?"""
    top = level == form.levels
    mask = ~(_CHANGING | form.cbit_mask)  # of a table's address the C-bit says nothing
    whole, part = _present(kernel, top, mask), _present(user, top, mask)
    if part and part.keys() < whole.keys() and any(whole[index] == entry for index, entry in part.items()):
        return True
    if level < 5 or not part.keys() <= whole.keys():
        return False
    # with 5 levels it is the tables below the top that have entries in common
    for index, entry in part.items():
        lower = reader.read_tables([whole[index] & form.address_mask, entry & form.address_mask])
        if (
            lower[0] is not None
            and lower[1] is not None
            and _less(reader, form, lower[0], lower[1], level - 1)
        ):
            return True
    return False


def _present(table: bytes, upper: bool, mask: int) -> dict[int, int]:
    """Present entries by index, of the upper half alone or all; as much of them as ``mask`` says."""
    entries = enumerate(_TABLE.unpack(table))
    first = x86.TABLE_ENTRIES // 2 if upper else 0
    return {index: entry & mask for index, entry in entries if entry & x86.PTE_P and index >= first}
