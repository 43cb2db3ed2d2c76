"""A guest without the help of its VMM: registers through KVM, memory through sevkvm; stop, look, go on.

A stop is a hold of the vCPU threads, which ends with the connection, and with our process however it ends.
Stepping and breakpoints are refused. KVM_SET_GUEST_DEBUG could do them, but KVM_EXIT_DEBUG goes to whoever called
KVM_RUN, which is the VMM: QEMU without a client of its own stub takes it for the guest's and hands the guest a #DB
that it never caused (target/i386/kvm/kvm.c of QEMU 7.2). That state outlives us, so no watching of ours makes it safe.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING, Final

from sevkvm import errors
from sevkvm.abi.x86 import PAGE_MASK, PAGE_NBYTES
from sevkvm.gdbserver import registers
from sevkvm.gdbserver.target import Refused

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sevkvm.abi.kvmstate import Fpu
    from sevkvm.guest import Guest
    from sevkvm.paging.form import PagingForm

Writing = Callable[[], AbstractContextManager[None]]

_UPSTREAM: Final = "start gdbserver with --upstream for that"
NO_STEP: Final = f"the VMM would take the debug exit of a step for the guest's own: {_UPSTREAM}"
NO_BREAKPOINT: Final = f"the VMM would take the debug exit of a breakpoint for the guest's own: {_UPSTREAM}"
NO_REGISTER_WRITE: Final = (
    f"registers are read-only: the VMM may hold a copy that it writes back, {_UPSTREAM}"
)
NO_MEMORY_WRITE: Final = "memory is read-only unless gdbserver was started with --write"
NO_PHYSICAL_WRITE: Final = "whether that page is private is not known here: `sevkvm write --gpa` finds it out"
NO_RUN: Final = "a dump does not run"
NO_REGISTERS: Final = {"rip": 0}
"""gdb 13 drops a target without a program counter ("PC register is not available"); all else is unavailable."""


class AloneTarget:
    """A :class:`~sevkvm.gdbserver.target.Target` over a Guest.

    ``vcpu``: whose thread is the first; default vCPU 0. ``writing``: entered around each write of memory, which must
    not be cut short; None forbids them. Without ``hold`` somebody else stops the guest: vCPU threads that are held
    then would keep that one waiting.
    """

    def __init__(
        self,
        guest: Guest,
        vcpu: int | None = None,
        writing: Writing | None = None,
        *,
        hold: bool = True,
    ) -> None:
        self._guest = guest
        self._hold_too = hold
        self._writing = writing
        self._hold = ExitStack()
        self._held = False
        self._forms: dict[int, PagingForm] = {}
        self._fpus: dict[int, Fpu | None] = {}
        # one thread without registers stands for vCPUs that nobody knows
        self.threads: Sequence[int] = [index + 1 for index in guest.vcpu_indexes] or [1]
        self.first_thread = self.threads[0] if vcpu is None else vcpu + 1
        if self.first_thread not in self.threads:
            known = ", ".join(str(index) for index in guest.vcpu_indexes) or "none"
            raise errors.UsageError(f"no vCPU {vcpu}", help=f"this guest's vCPUs: {known}")

    def stop(self) -> None:
        """Hold the vCPUs; registers and page tables are read once from here on."""
        if not self._held and self._hold_too:
            self._hold.enter_context(self._guest.held())
        self._held = True

    def let_go(self) -> None:
        """Release them."""
        self._held = False
        self._forms.clear()
        self._fpus.clear()
        self._hold.close()

    def resume(self) -> None:
        """Release them; Refused for a dump."""
        if self._guest.pid is None:
            raise Refused(NO_RUN)
        self.let_go()

    def step(self, thread: int) -> None:
        """Refused, see above."""
        raise Refused(NO_RUN if self._guest.pid is None else NO_STEP)

    def registers(self, thread: int) -> dict[str, int]:
        """What KVM tells; of a SEV-ES guest, or a dump that has none, only a ``rip`` that is none."""
        try:
            states = self._guest.registers()
        except errors.RegistersUnavailable:
            return NO_REGISTERS
        for state in states:
            if state.index == thread - 1:
                return registers.values(state, self._fpu(thread))
        return NO_REGISTERS

    def write_register(self, thread: int, name: str, value: int) -> None:
        """Refused: a vCPU that was stopped in the middle of an exit belongs to the VMM."""
        raise Refused(NO_REGISTER_WRITE)

    def read(self, thread: int, address: int, nbytes: int, *, physical: bool) -> bytes:
        """Through the thread's page tables; physical memory as the guest's private memory."""
        try:
            return self._read(thread, address, nbytes, physical)
        except errors.NotMemory as fault:
            if fault.address == address:
                return self._read_device(fault, nbytes)
            good = fault.address - address
        except errors.MemoryFault as fault:
            good = fault.address - address if fault.space != "hva" else 0
        if not 0 < good < nbytes:
            return b""
        try:
            return self._read(thread, address, good, physical)
        except errors.MemoryFault:
            return b""  # of a guest that runs, and changed meanwhile

    def write(self, thread: int, address: int, data: bytes, *, physical: bool) -> None:
        """All of it, checked before and read back after, or none; where writes are allowed."""
        if self._guest.pid is None:
            raise Refused(NO_RUN)
        if self._writing is None:
            raise Refused(NO_MEMORY_WRITE)
        if physical and self._guest.sev.encrypted:
            raise Refused(NO_PHYSICAL_WRITE)
        with self._writing():
            if physical:
                self._guest.write_physical(address, data)
            else:
                self._guest.write_virtual(address, data, self._form(thread))

    def breakpoint(self, insert: bool, kind: int, address: int, length: int) -> None:
        """Refused, see above."""
        raise Refused(NO_RUN if self._guest.pid is None else NO_BREAKPOINT)

    def describe(self, thread: int) -> str:
        """Its vCPU, and whether rip means something."""
        known = self.registers(thread) is not NO_REGISTERS
        return f"vCPU {thread - 1}" + ("" if known else ", registers unknown")

    def _fpu(self, thread: int) -> Fpu | None:
        """Asked once a stop: it costs KVM more calls than all other registers."""
        if thread not in self._fpus or not self._held:
            more = self._guest.more_state(thread - 1)
            self._fpus[thread] = more.fpu if more else None
        return self._fpus[thread]

    def _read(self, thread: int, address: int, nbytes: int, physical: bool) -> bytes:
        if physical:
            return self._guest.read_physical(address, nbytes)
        return self._guest.read_virtual(address, nbytes, self._form(thread))

    def _read_device(self, fault: errors.NotMemory, nbytes: int) -> bytes:
        """With the one access that gdb asked for, where devices may be read."""
        if not self._guest.reads_devices:
            self._guest.explain(fault)
            return b""
        if (fault.address & PAGE_MASK) + nbytes > PAGE_NBYTES:
            raise errors.MemoryFault("gpa", fault.gpa, reason="an access to a device stays within a page")
        with self._guest.asking_devices():
            return self._guest.read_device(fault.gpa, nbytes)

    def _form(self, thread: int) -> PagingForm:
        """How the thread's tables are read; remembered while nothing runs."""
        form = self._forms.get(thread)
        if form is None:
            form = self._guest.paging(thread - 1 if self._guest.vcpu_indexes else None)
            if self._held:
                self._forms[thread] = form
        return form
