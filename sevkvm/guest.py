"""Guest: what every consumer is handed. It never says how the VMM was entered."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from typing import TYPE_CHECKING, Final

from sevkvm import errors
from sevkvm.abi.x86 import MSR_KERNEL_GS_BASE
from sevkvm.guestparts import GuestParts
from sevkvm.memory.source import Span
from sevkvm.paging.form import PagingForm, PagingMode
from sevkvm.paging.walk import Walker
from sevkvm.vcpu import VcpuState, paging_mode, root_gpa

if TYPE_CHECKING:
    from sevkvm.abi.kvmstate import MoreState
    from sevkvm.guestparts import Vcpu
    from sevkvm.linux.finder import KernelFinder
    from sevkvm.linux.symbols import Symbols
    from sevkvm.linux.vmcoreinfo import VmcoreInfo
    from sevkvm.memory.write import WritePlan
    from sevkvm.paging.walk import Translation

__all__ = ["Guest"]

_ACCESS_NBYTES: Final = (1, 2, 4, 8)


class Guest:
    """A guest we are attached to, or one that is a dump.

    ``pid``, ``vm_fd``: the VMM's process and its VM descriptor; both None for a dump, which ``contents`` describes.
    ``vcpu_indexes``: its vCPUs, ascending.
    What was read is remembered while the guest is held; of a guest that runs, each answer is read afresh.
    """

    def __init__(self, parts: GuestParts) -> None:
        self._parts = parts
        self.pid = parts.pid
        self.vm_fd = parts.vm_fd
        self.name = parts.name
        self.sev = parts.sev
        self._late_sev = parts.late_sev
        self.slots = parts.slots
        self.memory = parts.memory
        self.contents = parts.contents
        self.backing = parts.backing
        self.way = parts.way
        self.way_remark = parts.way_remark
        self.vcpu_indexes: Sequence[int] = tuple(vcpu.index for vcpu in parts.vcpus)
        self._depth = 0
        self._held_ns = 0
        self._states: list[VcpuState] | None = None
        self._explained = False

    @property
    def was_live(self) -> bool:
        """Is it a dump, and made while its guest ran? Only some formats can tell."""
        return self.contents is not None and self.contents.live

    def stats(self) -> dict[str, int]:
        """Counts by name: what attaching and reading cost; times end in ``_ns``."""
        return {**self.memory.counts(), **self._parts.costs(), "held_ns": self._held_ns}

    # ---- standing still

    @contextmanager
    def held(self, *, needed: bool = True) -> Iterator[None]:
        """Keep the vCPUs from running; nests. Device models of the VMM may still write guest memory.

        Where it is not ``needed``, but only makes an answer one of a single moment, a guest that is left alone runs on.
        """
        if self._parts.aloof and not (needed or self._depth):
            yield
            return
        if self._depth == 0:
            self._parts.holder.hold()
            self.memory.invalidate()
            self._states = None
        began = time.monotonic_ns()
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0:
                self.memory.invalidate()
                self._parts.holder.release()
                self._held_ns += time.monotonic_ns() - began

    def registers(self) -> list[VcpuState]:
        """Registers of every vCPU, held no longer than reading them takes.

        Read once while the guest is held. Raises RegistersUnavailable where they cannot be known.
        """
        if self._parts.no_registers is not None:
            raise errors.RegistersUnavailable(
                self._parts.no_registers,
                help="name the root of the page tables with --cr3 (and --paging) to use virtual addresses",
            )
        if self._depth and self._states is not None:
            return self._states
        self.memory.settle()
        with self._looked_at():
            self._states = [
                VcpuState(vcpu.index, vcpu.get_regs(), vcpu.get_sregs(), _kernel_gs_base(vcpu), vcpu.unknown)
                for vcpu in self._parts.vcpus
            ]
        return self._states

    def _looked_at(self) -> AbstractContextManager[None]:
        return nullcontext() if self._parts.aloof else self.held()

    @property
    def default_vcpu(self) -> int | None:
        """The vCPU that the user chose (``--vcpu``), or None for the first."""
        return self._parts.vcpu

    def more_state(self, vcpu: int) -> MoreState | None:
        """What else is known of a vCPU: FPU, debug registers and the like; None of a dump.

        Ask ``registers()`` first: it raises where none of this can be known.
        """
        self.memory.settle()
        with self._looked_at():
            return next((each.get_more() for each in self._parts.vcpus if each.index == vcpu), None)

    # ---- virtual addresses

    def paging(self, vcpu: int | None = None) -> PagingForm:
        """How this vCPU's (default: the user's choice, else the first) tables are read.

        ``--paging`` and ``--cr3`` override what the vCPU says. Where nobody can know that, it is the kernel's own
        tables, which are searched for once. Raises RegistersUnavailable, BadGuestData where several kernels cannot
        be told apart, PlatformUnsupported when an encrypted guest's C-bit is unknown, or UsageError for a ``--cr3``
        or ``--paging`` that does not fit.
        """
        cbit_pos = self._cbit_pos()
        mode, cr3 = self._parts.paging, self._parts.cr3
        if mode is PagingMode.OFF:
            return PagingForm(mode, 0, cbit_pos)
        if self._parts.no_registers is not None and cr3 is None:
            return self._kernel_form(self._parts.no_registers, cbit_pos)
        if self._parts.no_registers is not None and cr3 is not None:
            if mode is None:
                self._parts.warn("registers are unknown: reading --cr3 as the root of 4-level tables")
                mode = PagingMode.LEVEL4
            return PagingForm(mode, _named_root(cr3, mode, cbit_pos), cbit_pos)
        return self._form(self._state(self._parts.vcpu if vcpu is None else vcpu), cbit_pos)

    def forms(self) -> list[PagingForm]:
        """The distinct forms of all vCPUs that use page tables; or that of ``--cr3``, or of the kernel found."""
        known = self._parts.no_registers is None and self._parts.cr3 is None
        if not known or self._parts.paging is PagingMode.OFF:
            forms = [self.paging()]
        else:
            cbit_pos = self._cbit_pos()
            forms = [self._form(state, cbit_pos) for state in self.registers()]
        return [form for form in dict.fromkeys(forms) if form.levels]

    def _form(self, state: VcpuState, cbit_pos: int | None) -> PagingForm:
        """What a vCPU says, less what the user says otherwise."""
        own, cr3 = paging_mode(state.sregs), self._parts.cr3
        mode = own if self._parts.paging is None else self._parts.paging
        if cr3 is None:
            root = root_gpa(state.sregs.cr3, mode, cbit_pos)
        else:
            # tables were named: a vCPU that uses none does not tell which
            mode = mode or PagingMode.LEVEL4
            root = _named_root(cr3, mode, cbit_pos)
        # a vCPU whose own tables have no NX does not tell whether others have it
        return PagingForm(mode, root, cbit_pos, state.nx_enabled or own < PagingMode.PAE)

    def translate(self, gva: int, form: PagingForm | None = None) -> Translation:
        """Walk the guest's tables for one address; a miss is an answer."""
        self._refresh()
        return Walker(self.memory, form or self.paging()).translate(gva)

    def read_virtual(self, gva: int, nbytes: int, form: PagingForm | None = None) -> bytes:
        """Exactly nbytes at ``gva``; PageNotPresent or MemoryFault name the first byte that cannot be read."""
        self._refresh()
        parts: list[bytes] = []
        for piece in Walker(self.memory, form or self.paging()).pieces(gva, nbytes):
            if piece.gpa is None:
                raise _not_present(piece.gva, piece.translation)
            try:
                parts.append(self.memory.read(piece.gpa, piece.nbytes, piece.private))
            except errors.MemoryFault as fault:
                at = piece.gva + (fault.address - piece.gpa)
                if isinstance(fault, errors.NotMemory):
                    raise errors.NotMemory(fault.gpa, at) from fault
                raise errors.MemoryFault(
                    "gva", at, reason=f"at gpa 0x{fault.address:x}: {fault.reason}"
                ) from fault
        return b"".join(parts)

    def read_physical(self, gpa: int, nbytes: int) -> bytes:
        """Exactly nbytes at ``gpa`` as the encrypted guest's private memory; MemoryFault otherwise."""
        self._refresh()
        return self.memory.read(gpa, nbytes)

    # ---- devices

    @property
    def reads_devices(self) -> bool:
        """The user asked for it."""
        return self._parts.devices is not None

    @contextmanager
    def asking_devices(self) -> Iterator[None]:
        """Around the questions of one command: the VMM's monitor is hung up on afterwards."""
        try:
            yield
        finally:
            if self._parts.devices is not None:
                self._parts.devices.close()

    def read_device(self, gpa: int, nbytes: int) -> bytes:
        """One access of 1, 2, 4 or 8 bytes to the device at ``gpa``, made by the VMM, once: it may change the device.

        The VMM answers when its vCPU threads do. Those that are held are let go meanwhile if the VMM itself has
        paused the guest; a guest that would run on is not asked. Raises MemoryFault, TargetTimeout (the access may
        be made yet), ProtocolError.
        """
        devices = self._parts.devices
        if devices is None:
            raise errors.NotMemory(gpa)
        if nbytes not in _ACCESS_NBYTES:
            raise errors.MemoryFault("gpa", gpa, reason="devices are read 1, 2, 4 or 8 bytes at a time")
        if not self._depth:
            return devices.read(gpa, nbytes)
        if not devices.paused():
            raise errors.MemoryFault(
                "gpa",
                gpa,
                reason="the VMM reads no device while its vCPU threads are held",
                help="pause the guest in the VMM's own monitor first (`stop`)",
            )
        self.memory.settle()
        self._parts.holder.release()
        try:
            return devices.read(gpa, nbytes)
        finally:
            self._parts.holder.hold()

    def explain(self, fault: errors.MemoryFault | None) -> None:
        """Warn, once, of what would read an address that is no memory."""
        if isinstance(fault, errors.NotMemory) and not self.reads_devices and not self._explained:
            self._explained = True
            self._parts.warn(
                f"gpa 0x{fault.gpa:x} is no RAM: with --mmio the VMM's monitor reads the device there, if it has one,"
                " which may change the device"
            )
        elif fault is not None and self.reads_devices:
            self._parts.warn(fault.message + (f" ({fault.help})" if fault.help else ""))

    # ---- writing

    def plan_virtual_write(self, gva: int, data: bytes, form: PagingForm | None = None) -> WritePlan:
        """What a write to ``gva`` would do, each page private or shared as its leaf says; nothing is written.

        Right while the guest is held: plan and ``carry_out`` belong into one ``held()``. Raises PageNotPresent or
        MemoryFault for the first byte that cannot be written, UsageError for a dump.
        """
        self._refresh()
        spans: list[Span] = []
        for piece in Walker(self.memory, form or self.paging()).pieces(gva, len(data)):
            if piece.gpa is None:
                raise _not_present(piece.gva, piece.translation)
            start = piece.gva - gva
            spans.append(Span(piece.gpa, piece.private, data[start : start + piece.nbytes], piece.gva))
        return self.memory.plan_write(spans)

    def plan_physical_write(self, gpa: int, data: bytes, private: bool = True) -> WritePlan:
        """The same for ``gpa``. ``private`` must be right: a page taken for the other kind becomes noise."""
        self._refresh()
        return self.memory.plan_write([Span(gpa, private, data)])

    def carry_out(self, plan: WritePlan) -> None:
        """Write what was planned, page by page, each read back; 16 bytes of a block change at once, no more.

        Raises WriteFailed, which tells how far it came; nothing is tried twice.
        """
        with self.held():
            self.memory.carry_out(plan)

    def write_virtual(self, gva: int, data: bytes, form: PagingForm | None = None) -> WritePlan:
        """Write at ``gva`` while the guest stands still: all of it, or what the two halves above raise."""
        with self.held():
            plan = self.plan_virtual_write(gva, data, form)
            self.carry_out(plan)
        return plan

    def write_physical(self, gpa: int, data: bytes, private: bool = True) -> WritePlan:
        """Write at ``gpa`` in the same way."""
        with self.held():
            plan = self.plan_physical_write(gpa, data, private)
            self.carry_out(plan)
        return plan

    # ---- what a Linux guest says of itself

    def vmcoreinfo(self) -> VmcoreInfo | None:
        """The kernel's VMCOREINFO note, checked against memory; None if there is none to be found.

        Searched once: through the vCPUs' tables, which costs a few thousand pages, or in all of RAM (bounded).
        Raises BadGuestData where several kernels cannot be told apart, PlatformUnsupported for an unknown C-bit.
        """
        self._refresh()
        cbit_pos = self._cbit_pos()
        if self._parts.no_registers is None or self._parts.cr3 is not None:
            forms = self.forms()
        else:
            kernel = self._finder.kernel(cbit_pos)
            if kernel is None or kernel.info is not None:
                return kernel and kernel.info
            forms = [kernel.form]
        return self._finder.note(cbit_pos, forms)

    def symbols(self) -> Symbols:
        """Names and addresses of the kernel's functions and variables, from its own table.

        Read once, which takes about a thousand pages beyond what the note takes, some thousands before Linux 6.0. The
        vCPUs are held until the note is found, for their page tables lead to it. Raises BadGuestData where there are
        none, or as ``vmcoreinfo``.
        """
        return self._finder.symbols(self._note_at_rest, self._cbit_pos())

    def _note_at_rest(self) -> VmcoreInfo | None:
        with self.held():
            return self.vmcoreinfo()

    @cached_property
    def _finder(self) -> KernelFinder:
        # what it imports costs as much as a walk; most commands need no kernel
        from sevkvm.linux.finder import KernelFinder

        return KernelFinder(
            self._parts.memory,
            self._parts.warn,
            limit_pages=self._parts.search_pages,
            progress=self._parts.searching,
        )

    def _kernel_form(self, no_registers: str, cbit_pos: int | None) -> PagingForm:
        """The kernel's own tables, found in memory."""
        self._refresh()
        kernel = self._finder.kernel(cbit_pos)
        if kernel is None:
            raise errors.RegistersUnavailable(
                f"{no_registers}, and no Linux kernel was found in its memory: {self._finder.shortfall}",
                help="name the root of the page tables with --cr3 (and --paging), or let more be searched with "
                "--search-limit",
            )
        wanted = self._parts.paging
        if wanted not in (None, kernel.form.mode):
            raise errors.UsageError(
                f"the tables of the kernel that was found are {kernel.form.mode.option_name}, not what --paging says",
                help="name the root of other tables with --cr3",
            )
        return kernel.form

    def _refresh(self) -> None:
        """A guest that runs may have changed what we remember."""
        if self._depth == 0:
            self.memory.invalidate()

    def _state(self, index: int | None) -> VcpuState:
        states = self.registers()
        if index is None and states:
            return states[0]
        for state in states:
            if state.index == index:
                return state
        known = ", ".join(str(number) for number in self.vcpu_indexes) or "none"
        raise errors.UsageError(f"no vCPU {index}", help=f"this guest's vCPUs: {known}")

    def _cbit_pos(self) -> int | None:
        if self._late_sev is not None:
            self.sev, self._late_sev = self._late_sev(), None
        if self.sev.encrypted and self.sev.cbit_pos is None:
            raise errors.PlatformUnsupported(
                "the position of the C-bit is not known: neither the monitor nor CPUID 8000_001F told it",
                help="say it with --cbit-pos: 47 on EPYC Naples and Rome, 51 on Milan and Genoa",
            )
        return self.sev.cbit_pos if self.sev.encrypted else None


def _kernel_gs_base(vcpu: Vcpu) -> int | None:
    """A register that only some notes of core files have: not worth failing for."""
    try:
        return vcpu.get_msr(MSR_KERNEL_GS_BASE)
    except errors.IoctlError:
        return None


def _not_present(gva: int, miss: Translation) -> errors.PageNotPresent:
    """The error for a miss; with no step it is the root table that cannot be read, or a gva that is none."""
    level, index, entry = (
        (miss.steps[-1].level, miss.steps[-1].index, miss.steps[-1].entry) if miss.steps else (0, 0, 0)
    )
    return errors.PageNotPresent(
        gva, level=level, index=index, entry=entry, reason=miss.fault or "not-present"
    )


def _named_root(cr3: int, mode: PagingMode, cbit_pos: int | None) -> int:
    """``--cr3`` as the root of tables of this mode."""
    if not mode.long and root_gpa(cr3, PagingMode.LEVEL4, cbit_pos) > mode.root_mask:
        raise errors.UsageError(
            f"--cr3 0x{cr3:x} is above 4 GiB, where {mode.option_name} paging cannot have its tables",
            help="name another paging mode with --paging",
        )
    return root_gpa(cr3, mode, cbit_pos)
