"""The lab's sealed Linux as the guest of a dump, in process: nothing is attached, encrypted or run.

How its bytes come out of a VMM is what tests/sev/test_qemu_encrypted.py is about; here they are only written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sevkvm.errors import RegistersUnavailable
from sevkvm.lab.files import mapped
from sevkvm.linux.find import Kernel, find_kernel, find_note
from sevkvm.linux.ram import Search
from sevkvm.memory.policy import SevInfo, SevKind
from sevkvm.memory.source import Slot, SlotMap
from sevkvm.paging.form import PagingForm
from sevkvm.vcpu import VcpuState, paging_mode, root_gpa

if TYPE_CHECKING:
    from sevkvm.lab.sealed import SealedLinux
    from sevkvm.linux.vmcoreinfo import VmcoreInfo

PAGE = 4096


class FileMemory:
    """Guest RAM from gpa 0 up, out of the file it is kept in."""

    chunk_nbytes = 512 << 10

    firmware_commands = 0

    def __init__(self, ram: memoryview, slots: SlotMap) -> None:
        self._ram = ram
        self.slots = slots

    def readinto(self, gpa: int, private: bool, buffer: memoryview, ahead: int = 0) -> int:
        """The short-read rule of ``sevkvm.memory.source``."""
        data = self._ram[gpa : gpa + len(buffer)]
        buffer[: len(data)] = data
        return len(data)

    def peek(self, gpa: int, buffer: memoryview) -> int:
        """The same, for searches."""
        return self.readinto(gpa, True, buffer)

    def read_tables(self, gpas: Sequence[int], *, keep: bool = True) -> list[bytes | None]:
        """Pages; None outside RAM."""
        return [bytes(self._ram[gpa : gpa + PAGE]) if gpa + PAGE <= len(self._ram) else None for gpa in gpas]

    def read(self, gpa: int, nbytes: int, private: bool = True) -> bytes:
        """Bytes of RAM."""
        return bytes(self._ram[gpa : gpa + nbytes])


class SealedGuest:
    """What ``dump_guest`` needs of a guest; the slots are as QEMU has them without the legacy hole's ROMs.

    es: its registers are encrypted.
    """

    was_live = False

    def __init__(self, linux: SealedLinux, *, es: bool = False) -> None:
        self.linux = linux
        self._es = es
        self.sev = SevInfo(SevKind.SEV_ES if es else SevKind.SEV, cbit_pos=linux.seal.cbit_pos)
        self.slots = SlotMap(
            Slot(first, end - first, 0x7F00_0000_0000 + first) for first, end in linux.plain.private_ranges
        )
        self.memory = FileMemory(mapped(linux.ram), self.slots)

    def registers(self) -> list[VcpuState]:
        """As the machine had them when it was stopped, the C-bit in CR3."""
        if self._es:
            raise RegistersUnavailable("this is a SEV-ES guest: its registers are encrypted")
        return [VcpuState(index, vcpu.regs, vcpu.sregs) for index, vcpu in enumerate(self.linux.vcpus)]

    @contextmanager
    def held(self) -> Iterator[None]:
        """It never runs."""
        yield

    def paging(self) -> PagingForm:
        """Of the first vCPU."""
        return self.forms()[0]

    def forms(self) -> list[PagingForm]:
        """Of every vCPU; of the kernel where they cannot be known."""
        if self._es:
            return [self._kernel().form]
        cbit_pos = self.sev.cbit_pos
        modes = [(paging_mode(vcpu.sregs), vcpu.sregs.cr3) for vcpu in self.linux.vcpus]
        return [PagingForm(mode, root_gpa(cr3, mode, cbit_pos), cbit_pos) for mode, cr3 in modes]

    def vmcoreinfo(self) -> VmcoreInfo | None:
        """As :meth:`sevkvm.guest.Guest.vmcoreinfo` finds it."""
        if self._es:
            return self._kernel().info
        return find_note(Search(self.memory, self.sev.cbit_pos), self.forms())

    def _kernel(self) -> Kernel:
        found = find_kernel(Search(self.memory, self.sev.cbit_pos))
        assert found is not None
        return found
