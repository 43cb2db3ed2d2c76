"""Open a dump as a guest that stands still: nobody is attached to, nothing is decrypted, no policy is asked."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import PurePath
from typing import TYPE_CHECKING

from sevkvm.abi.x86 import MSR_KERNEL_GS_BASE, PAGE_SHIFT
from sevkvm.attach.filecbit import file_cbit, searched_cbit, stripped_bit
from sevkvm.attach.holding import NoHold
from sevkvm.dumpfile import open_contents
from sevkvm.dumpfile.image import MappedFile
from sevkvm.guest import Guest
from sevkvm.guestparts import GuestParts
from sevkvm.memory.file import FileMemory

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sevkvm.abi.corenotes import CpuRegisters
    from sevkvm.abi.kvm import Regs, Sregs
    from sevkvm.attach.options import Warn
    from sevkvm.dumpfile import DumpContents
    from sevkvm.linux.ram import Progress
    from sevkvm.paging.mode import PagingMode


@dataclass(frozen=True)
class DumpOptions:
    """Which file, and what the user knows about it.

    ``format``: one of ``sevkvm.dumpfile.FORMATS``, or None to tell it from the file. ``slots``: of a raw file, as
    ``GPA:SIZE:OFFSET``. ``cbit_pos``: the C-bit in the file's page tables; None to find it out. ``search_limit``: how
    many bytes may be read in search of the kernel, where the file holds no registers.
    """

    path: str
    format: str | None = None
    slots: tuple[str, ...] = ()
    cbit_pos: int | None = None
    cr3: int | None = None
    vcpu: int | None = None
    paging: PagingMode | None = None
    search_limit: int = 4 << 30


class FileVcpu:
    """The registers of one vCPU as a dump tells them, but for ``stray_mask``, which is taken off CR3.

    In a dump whose page tables were stripped of the C-bit, CR3 with the bit leads nowhere.
    """

    def __init__(self, told: CpuRegisters, stray_mask: int = 0) -> None:
        self.index = told.index
        self.unknown = told.unknown
        self._told = told._replace(sregs=told.sregs._replace(cr3=told.sregs.cr3 & ~stray_mask))

    def get_regs(self) -> Regs:
        """General registers."""
        return self._told.regs

    def get_sregs(self) -> Sregs:
        """The rest; fields that ``unknown`` names are no facts."""
        return self._told.sregs

    def get_msr(self, msr: int) -> int | None:
        """The one that a QEMU note can have."""
        return self._told.kernel_gs_base if msr == MSR_KERNEL_GS_BASE else None

    def get_more(self) -> None:
        """No dump tells."""


@contextmanager
def open_dump(
    options: DumpOptions,
    *,
    warn: Warn = lambda text: None,
    searching: Progress = lambda done, limit: None,
) -> Iterator[Guest]:
    """A Guest whose memory and registers are those of a dump.

    Raises BadDump for what is no dump or a damaged one, UsageError for options that do not fit it, OSError.
    """
    with MappedFile(options.path) as image:
        contents = open_contents(image, options.format, _ranges(options.slots))
        memory = FileMemory(contents.store)
        for remark in contents.remarks:
            warn(remark)
        for gap in contents.store.missing()[:1]:
            warn(
                f"{options.path} does not hold all of its guest's memory; from gpa 0x{gap.gpa:x} on, {gap.why}"
            )
        info = file_cbit(contents, memory.slots, options.cbit_pos)
        stray_mask = stripped_bit(contents, info, memory.slots)
        search_pages = options.search_limit >> PAGE_SHIFT
        search_cbit = partial(searched_cbit, memory, search_pages, warn)
        yield Guest(
            GuestParts(
                pid=None,
                vm_fd=None,
                name=PurePath(options.path).name,
                sev=info,
                slots=memory.slots,
                memory=memory,
                vcpus=[FileVcpu(told, stray_mask) for told in contents.cpus],
                holder=NoHold(),
                costs=dict,
                warn=warn,
                no_registers=_why_no_registers(contents),
                cr3=options.cr3,
                vcpu=options.vcpu,
                paging=options.paging,
                search_pages=search_pages,
                searching=searching,
                contents=contents,
                late_sev=search_cbit if _tells_no_cbit(contents, options) else None,
            )
        )


def _ranges(slots: Sequence[str]) -> list[tuple[int, int, int]]:
    if not slots:
        return []
    from sevkvm.host.slots import parse_slot

    told = [parse_slot(text) for text in slots]
    return [(slot.gpa, slot.nbytes, slot.hva) for slot in told]


def _tells_no_cbit(contents: DumpContents, options: DumpOptions) -> bool:
    """Nothing in the file's own structure can tell whether its guest was encrypted."""
    told = options.cbit_pos is not None or contents.vmcoreinfo is not None or contents.alias_bit is not None
    return not told and not contents.cpus


def _why_no_registers(contents: DumpContents) -> str | None:
    if contents.cpus:
        return None
    if contents.format != "lime" and contents.format != "raw":
        return "the dump has no QEMU notes: it does not tell the vCPUs' control registers"
    return f"a dump in {contents.format} format holds no registers"
