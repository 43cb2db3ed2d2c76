"""One guest's search: done when it is first needed, told in one line, and remembered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from sevkvm.errors import BadGuestData
from sevkvm.linux.find import Kernel, find_kernel, find_note
from sevkvm.linux.kallsyms import read_symbols
from sevkvm.linux.ram import LIMIT_PAGES, Progress, Search
from sevkvm.linux.space import KernelSpace
from sevkvm.linux.symbols import Symbols
from sevkvm.linux.tables import check

if TYPE_CHECKING:
    from sevkvm.linux.vmcoreinfo import VmcoreInfo
    from sevkvm.memory.source import PhysicalMemory
    from sevkvm.paging.form import PagingForm


class KernelFinder:
    """Finds the kernel of a guest once; ``warn`` gets what was found and what it cost.

    What is remembered is where things are, and a kernel does not move. limit_pages: what one search may read.
    """

    def __init__(
        self,
        memory: PhysicalMemory,
        warn: Callable[[str], None],
        *,
        limit_pages: int = LIMIT_PAGES,
        progress: Progress = lambda done, limit: None,
    ) -> None:
        self._memory = memory
        self._warn = warn
        self._limit_pages = limit_pages
        self._progress = progress
        self._kernel: Kernel | BadGuestData | None = None
        self._note: VmcoreInfo | None = None
        self._symbols: Symbols | None = None
        self._searched_kernel = self._searched_note = False
        self.shortfall = ""
        """After a search that found nothing: what it did, in words that end a sentence."""

    def kernel(self, cbit_pos: int | None) -> Kernel | None:
        """The kernel, by memory alone; None if there is none, BadGuestData if there are several."""
        if not self._searched_kernel:
            search, before = self._search(cbit_pos), self._commands()
            try:
                self._kernel = find_kernel(search)
            except BadGuestData as error:
                self._kernel = error
            self._searched_kernel = True
            self._tell_kernel(search, before)
        if isinstance(self._kernel, BadGuestData):
            raise self._kernel
        return self._kernel

    def note(self, cbit_pos: int | None, forms: Sequence[PagingForm]) -> VmcoreInfo | None:
        """The note of the kernel with these tables (any vCPU's); None if there is none to be found."""
        if not self._searched_note:
            search = self._search(cbit_pos)
            self._note = find_note(search, forms)
            self._searched_note = True
            if self._note is None:
                self.shortfall = _shortfall(search)
            else:
                self._check_mask(self._note, cbit_pos)
        return self._note

    def symbols(self, find_info: Callable[[], VmcoreInfo | None], cbit_pos: int | None) -> Symbols:
        """The kernel's own symbols, read once; ``find_info`` gets its note, and its cost is counted with theirs.

        BadGuestData where there is no kernel, or none that tells its symbols.
        """
        if self._symbols is None:
            commands, nbytes = self._commands(), self._copied()
            info = find_info()
            if info is None:
                raise BadGuestData(
                    "no Linux kernel was found that tells of itself (VMCOREINFO): there are no symbols"
                    + (f"; {self.shortfall}" if self.shortfall else "")
                )
            space = KernelSpace(self._memory, check(self._memory, info, cbit_pos))
            symbols = read_symbols(space, info)
            cost = f"{self._commands() - commands} firmware commands"
            if not self._memory.encrypted:
                cost = f"{(self._copied() - nbytes) >> 10} KiB of memory"
            self._symbols = Symbols(symbols, info.osrelease, cost)
        return self._symbols

    def _search(self, cbit_pos: int | None) -> Search:
        return Search(self._memory, cbit_pos, self._limit_pages, self._progress)

    def _commands(self) -> int:
        return self._memory.counts()["firmware_commands"]

    def _copied(self) -> int:
        return self._memory.counts()["bytes_copied"]

    def _tell_kernel(self, search: Search, before: int) -> None:
        cost = f"{self._commands() - before} firmware commands"
        if not self._memory.encrypted:
            cost = f"{search.pages} pages read"
        if not isinstance(self._kernel, Kernel):
            self.shortfall = _shortfall(search)
            return
        form, info = self._kernel
        name = f"Linux {info.osrelease}" if info else "a kernel without a VMCOREINFO note"
        self._warn(
            f"registers are unknown: using the {form.levels}-level page tables of {name}, "
            f"found at gpa 0x{form.root_gpa:x} with {cost}"
        )
        if info is not None:
            self._check_mask(info, search.cbit_pos)
            if info.crashed:
                self._warn(
                    "this kernel has crashed: if another runs in its place now, name its tables with --cr3"
                )

    def _check_mask(self, info: VmcoreInfo, cbit_pos: int | None) -> None:
        wanted = 0 if cbit_pos is None else 1 << cbit_pos
        if info.sme_mask is not None and info.sme_mask != wanted:
            self._warn(
                f"the kernel's note says sme_mask 0x{info.sme_mask:x}, but the C-bit taken for this guest "
                f"makes it 0x{wanted:x}"
            )


def _shortfall(search: Search) -> str:
    """What a search in vain has done."""
    said = f"{search.pages} pages of the guest were searched"
    if not search.searched_all:
        said += f", which is the limit: {search.memory.slots.nbytes >> 12} are there"
    if search.unreadable_nbytes:
        said += f"; {search.unreadable_nbytes >> 10} KiB could not be read"
    if search.refused_count:
        said += f"; {search.refused_count} candidates were refused, the first because {search.refused[0]}"
    return said
