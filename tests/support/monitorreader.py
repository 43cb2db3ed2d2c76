"""Guest-physical memory through QEMU's monitor: RAM, ROM and flash as the processor sees them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tests.support.qemu import QemuVmm


@dataclass
class MonitorReader:
    """A TableReader by way of ``pmemsave``; where there is nothing, QEMU reads zeros."""

    vmm: QemuVmm

    def read_tables(self, gpas: Sequence[int], *, keep: bool = True) -> list[bytes | None]:
        return [self._read(gpa) for gpa in gpas]

    def _read(self, gpa: int) -> bytes:
        path = self.vmm.directory / "page"
        self.vmm.execute("pmemsave", val=gpa, size=4096, filename=str(path))
        return path.read_bytes()
