"""What a guest is made of: who tells, holds, backs and reads what. ``attach`` wires it together, Guest uses it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from sevkvm.linux.ram import LIMIT_PAGES, Progress

if TYPE_CHECKING:
    from sevkvm.abi.kvm import Regs, Sregs
    from sevkvm.abi.kvmstate import MoreState
    from sevkvm.dumpfile import DumpContents
    from sevkvm.memory.policy import SevInfo
    from sevkvm.memory.source import PhysicalMemory, SlotMap
    from sevkvm.paging.form import PagingMode


class Holder(Protocol):
    """Who can keep the vCPUs from running."""

    def hold(self) -> object:
        """Stop them."""
        ...

    def release(self) -> None:
        """Let them run."""
        ...


class Vcpu(Protocol):
    """Who tells one vCPU's registers: a descriptor of the VMM, or a dump."""

    @property
    def index(self) -> int:
        """Its number."""
        ...

    @property
    def unknown(self) -> frozenset[str]:
        """Fields of ``get_sregs()`` that are not known."""
        ...

    def get_regs(self) -> Regs:
        """General registers."""
        ...

    def get_sregs(self) -> Sregs:
        """Segments, descriptor tables and control registers."""
        ...

    def get_msr(self, msr: int) -> int | None:
        """A model-specific register; None where nobody tells it."""
        ...

    def get_more(self) -> MoreState | None:
        """FPU, debug registers and the like; None where nobody tells any."""
        ...


class Backing(Protocol):
    """Who knows which parts of the VMM's memory were ever touched."""

    def ranges(self, hva: int, nbytes: int) -> Iterable[tuple[int, int, bool | None]]:
        """``(hva, nbytes, state)``: True can be read, False was never written, None cannot be told."""
        ...


class Devices(Protocol):
    """Who reads the registers of the guest's devices: the VMM."""

    def read(self, gpa: int, nbytes: int) -> bytes:
        """What a device answers to one access, made once; MemoryFault where none answers."""
        ...

    def paused(self) -> bool:
        """The VMM itself keeps the vCPUs from running."""
        ...

    def close(self) -> None:
        """Hang up until the next question: others may want to ask."""
        ...


class GuestParts(NamedTuple):
    """What ``attach`` wires together. ``pid`` and ``vm_fd`` are None for a guest that is a dump: ``contents``.

    ``no_registers``: why registers cannot be known, or None. ``cr3``, ``vcpu`` and ``paging`` are the user's
    choices. ``search_pages`` and ``searching``: how much may be read in search of the kernel, and who is told of it.
    ``late_sev``: what is learned of the C-bit at the price of a search, asked when page tables are to be read.
    ``backing`` is None for a dump. ``devices`` is None unless the user asked for reading them.
    ``aloof``: to hold the guest is more than a pause for it, and registers are told of one that runs.
    ``way`` names the way in, ``way_remark`` why it is not another; None for a dump.
    """

    pid: int | None
    vm_fd: int | None
    name: str
    sev: SevInfo
    slots: SlotMap
    memory: PhysicalMemory
    vcpus: Sequence[Vcpu]
    holder: Holder
    costs: Callable[[], dict[str, int]]
    warn: Callable[[str], None]
    no_registers: str | None = None
    cr3: int | None = None
    vcpu: int | None = None
    contents: DumpContents | None = None
    paging: PagingMode | None = None
    search_pages: int = LIMIT_PAGES
    searching: Progress = lambda done, limit: None
    late_sev: Callable[[], SevInfo] | None = None
    backing: Backing | None = None
    devices: Devices | None = None
    aloof: bool = False
    way: str | None = None
    way_remark: str | None = None
