"""vCPU registers as the VMM's monitor prints them, for when nobody may stop the vCPUs to ask KVM."""

from __future__ import annotations

from collections.abc import Callable

from sevkvm import errors
from sevkvm.abi.corenotes import CpuRegisters
from sevkvm.abi.hmpregisters import NOT_IN_MONITOR, parse_registers
from sevkvm.abi.kvm import Regs, Sregs


class MonitorRegisters:
    """All vCPUs' registers out of one answer, which is asked for anew when a vCPU is looked at a second time.

    ``ask`` runs a command of the human monitor. Each vCPU leaves the guest for a moment to be asked, and runs on.
    """

    def __init__(self, ask: Callable[[str], str]) -> None:
        self._ask = ask
        self._told: dict[int, CpuRegisters] = {}
        self._given: set[int] = set()

    def look(self, index: int) -> CpuRegisters:
        """What there is to know of one vCPU now; ProtocolError where the answer does not name it."""
        if index in self._given or index not in self._told:
            self._told = {told.index: told for told in parse_registers(self._ask("info registers -a"))}
            self._given.clear()
        self._given.add(index)
        return self.seen(index)

    def seen(self, index: int) -> CpuRegisters:
        """The same as last looked at."""
        if index not in self._told:
            raise errors.ProtocolError(f"`info registers -a` does not tell vCPU {index}")
        return self._told[index]


class MonitorVcpu:
    """The registers of one vCPU: first ``get_regs``, then the rest as of the same moment."""

    def __init__(self, registers: MonitorRegisters, index: int) -> None:
        self.index = index
        self.unknown = NOT_IN_MONITOR
        self._registers = registers

    def get_regs(self) -> Regs:
        """General registers."""
        return self._registers.look(self.index).regs

    def get_sregs(self) -> Sregs:
        """The rest, but for what ``unknown`` names."""
        return self._registers.seen(self.index).sregs

    def get_msr(self, msr: int) -> None:
        """No monitor tells."""

    def get_more(self) -> None:
        """Not asked for."""
