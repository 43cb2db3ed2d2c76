"""From what a note says to page tables that can be believed: each claim is checked against guest memory."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from sevkvm.abi.x86 import PTE_P
from sevkvm.errors import BadGuestData, MemoryFault
from sevkvm.paging.form import PagingForm, PagingMode
from sevkvm.paging.walk import Walker

if TYPE_CHECKING:
    from sevkvm.linux.space import Memory
    from sevkvm.linux.vmcoreinfo import VmcoreInfo
    from sevkvm.paging.translation import Translation

_TABLE: Final = struct.Struct("<512Q")
# struct uts_namespace: at most a reference count before six fields of 65 bytes
_UTS_NBYTES: Final = 8 + 6 * 65


def check(
    memory: Memory, info: VmcoreInfo, cbit_pos: int | None, reference: PagingForm | None = None
) -> PagingForm:
    """The kernel's page tables, if all that ``info`` says of them is true; BadGuestData says what is not.

    reference: tables that are known to be the running kernel's; these must lead to the same root.
    """
    where = f"the note at gpa 0x{info.gpa:x}"
    root = info.root_gpa
    if reference is not None:
        known = Walker(memory, reference).translate(info.swapper_gva).gpa
        if known is None or root not in (None, known):
            raise BadGuestData(f"{where} is not the running kernel's")
        root = known
    if root is None:
        raise BadGuestData(f"{where} does not say phys_base")
    try:
        form = PagingForm(PagingMode(info.levels), root, cbit_pos)
    except ValueError as error:
        raise BadGuestData(f"{where}: {error}") from error
    check_root(memory, form, where)
    walker = Walker(memory, form)
    if proved(walker.translate(info.swapper_gva), cbit_pos) != root:
        raise BadGuestData(f"{where}: its tables at gpa 0x{root:x} do not map themselves as swapper_pg_dir")
    uts_gva = info.symbols.get("init_uts_ns")
    uts_gpa = None if uts_gva is None else proved(walker.translate(uts_gva), cbit_pos)
    if uts_gva is None or uts_gpa is None:
        raise BadGuestData(f"{where}: its tables at gpa 0x{root:x} do not map init_uts_ns")
    if b"\0" + info.osrelease.encode() + b"\0" not in _read(memory, walker, uts_gva, cbit_pos):
        raise BadGuestData(f"{where}: init_uts_ns does not hold its release {info.osrelease!r}")
    return form


def check_root(memory: Memory, form: PagingForm, where: str) -> None:
    """BadGuestData unless there is a table at the root, sealed if the guest is encrypted."""
    (table,) = memory.read_tables([form.root_gpa])
    if table is None:
        raise BadGuestData(f"{where}: no table can be read at gpa 0x{form.root_gpa:x}")
    mask = form.cbit_mask
    if any(entry & PTE_P and entry & mask != mask for entry in _TABLE.unpack(table)):
        raise BadGuestData(f"{where}: entries of the table at gpa 0x{form.root_gpa:x} lack the C-bit")


def proved(hit: Translation, cbit_pos: int | None) -> int | None:
    """The gpa a walk leads to; None for a miss, and where an entry on the way lacks an encrypted guest's C-bit."""
    if cbit_pos is not None and not all(step.cbit for step in hit.steps):
        return None
    return hit.gpa


def _read(memory: Memory, walker: Walker, gva: int, cbit_pos: int | None) -> bytes:
    """What can be read of init_uts_ns, over a page's end too."""
    data = b""
    for piece in walker.pieces(gva, min(_UTS_NBYTES, (1 << 64) - gva)):
        if piece.gpa is None or proved(piece.translation, cbit_pos) is None:
            break
        try:
            data += memory.read(piece.gpa, piece.nbytes)
        except MemoryFault:
            break
    return data
