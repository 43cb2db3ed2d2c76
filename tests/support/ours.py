"""What the program under test makes of registers, and what it lists, as the text that QEMU's monitor would print."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sevkvm.abi.kvm import SREGS_NBYTES, Sregs
from sevkvm.abi.x86 import EFER_NXE
from sevkvm.paging.form import PagingForm
from sevkvm.paging.listing import Listing
from sevkvm.paging.mode import OPTION_NAMES, PagingMode
from sevkvm.vcpu import paging_mode, root_gpa
from tests.support.refwalk import root_of

if TYPE_CHECKING:
    from sevkvm.paging.walk import TableReader
    from tests.support.emulated import Emulated, Mode


def form_of(mode: Mode, cr3: int, cbit_pos: int | None = None, *, nx: bool = True) -> PagingForm:
    """The form that these registers ask for."""
    return PagingForm(PagingMode(OPTION_NAMES.index(mode)), root_of(mode, cr3), cbit_pos, nx)


def form_in_use(machine: Emulated) -> PagingForm:
    """What we make of the control registers that this machine has."""
    get = machine.stub.get
    blank = Sregs.unpack(bytes(SREGS_NBYTES))
    sregs = blank._replace(cr0=get("cr0"), cr3=get("cr3"), cr4=get("cr4"), efer=get("efer"))
    mode = paging_mode(sregs)
    return PagingForm(mode, root_gpa(sregs.cr3, mode, None), nx=bool(sregs.efer & EFER_NXE))


def our_tlb(reader: TableReader, form: PagingForm) -> str:
    """Our ``info tlb``."""
    return b"".join(Listing(reader, form).leaves_text()).decode()


def our_mem(reader: TableReader, form: PagingForm) -> str:
    """Our ``info mem``."""
    return b"".join(Listing(reader, form).runs_text()).decode()
