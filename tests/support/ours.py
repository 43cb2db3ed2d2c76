"""What the program under test lists, as the text that QEMU's monitor would print."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sevkvm.paging.form import OPTION_NAMES, PagingForm, PagingMode
from sevkvm.paging.listing import Listing
from tests.support.refwalk import root_of

if TYPE_CHECKING:
    from sevkvm.paging.walk import TableReader
    from tests.support.emulated import Mode


def form_of(mode: Mode, cr3: int, cbit_pos: int | None = None, *, nx: bool = True) -> PagingForm:
    """The form that these registers ask for."""
    return PagingForm(PagingMode(OPTION_NAMES.index(mode)), root_of(mode, cr3), cbit_pos, nx)


def our_tlb(reader: TableReader, form: PagingForm) -> str:
    """Our ``info tlb``."""
    return b"".join(Listing(reader, form).leaves_text()).decode()


def our_mem(reader: TableReader, form: PagingForm) -> str:
    """Our ``info mem``."""
    return b"".join(Listing(reader, form).runs_text()).decode()
