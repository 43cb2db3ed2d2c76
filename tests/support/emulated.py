"""An unmodified QEMU under emulation whose monitor judges our walks: any paging mode, any tables, nothing run.

with emulated() as machine:
    machine.ram[0x1000:0x2000] = table          # guest RAM is a shared file
    machine.set_paging("pae", 0x1020)
    machine.info_tlb()

``/dev/kvm`` is not needed. What the monitor gets wrong is told in ``tests/kvm/test_listing_qemu_wrong.py``.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, get_args

from tests.support.gdbstub import GdbStub
from tests.support.qemu import QemuVmm, qemu, require_qemu

Mode = Literal["none", "32", "pse", "pae", "4level", "5level"]
PAGED_MODES: Final[tuple[Mode, ...]] = get_args(Mode)[1:]

RAM_NBYTES: Final = 64 << 20
# A PC shows video memory and ROMs here, though the file has bytes.
LEGACY_HOLE: Final = range(0xA_0000, 0x10_0000)

_CR0_PE_ET, _CR0_PG = 0x11, 1 << 31
_CR4_PSE, _CR4_PAE, _CR4_LA57 = 1 << 4, 1 << 5, 1 << 12
_EFER_LME, _EFER_LMA, _EFER_NXE = 1 << 8, 1 << 10, 1 << 11
_CR4: Final[dict[Mode, int]] = {
    "none": 0,
    "32": 0,
    "pse": _CR4_PSE,
    "pae": _CR4_PAE,
    "4level": _CR4_PAE,
    "5level": _CR4_PAE | _CR4_LA57,
}
_GPA = re.compile(r"gpa: (?:0x)?([0-9a-f]+)\n")


@dataclass
class RamReader:
    """Tables out of guest RAM; None where there is none. ``cbit`` is set in every present 8-byte entry on the way."""

    read: Callable[[int, int], bytes | None]
    cbit: int = 0
    fetched: list[int] = field(default_factory=list)

    def read_tables(self, gpas: Sequence[int], *, keep: bool = True) -> list[bytes | None]:
        assert len(set(gpas)) == len(gpas), "asked for a table twice in one batch"
        assert all(gpa % 4096 == 0 for gpa in gpas)
        self.fetched += gpas
        return [self._read(gpa) for gpa in gpas]

    def _read(self, gpa: int) -> bytes | None:
        page = self.read(gpa, 4096)
        if page is None or not self.cbit:
            return page
        entries = memoryview(page).cast("Q")
        return b"".join(
            (entry | self.cbit if entry & 1 else entry).to_bytes(8, "little") for entry in entries
        )


@dataclass
class Emulated:
    """The machine: one CPU that never runs."""

    vmm: QemuVmm
    stub: GdbStub
    ram: mmap.mmap

    def set_paging(self, mode: Mode, cr3: int, *, nx: bool = True) -> None:
        """Set the control registers; the stub takes 32 bits of ``cr3`` outside 64-bit code."""
        assert cr3 < 1 << 32
        long_mode = mode in ("4level", "5level")
        efer = (_EFER_LME if long_mode else 0) | (_EFER_NXE if nx else 0)
        cr0 = _CR0_PE_ET | (_CR0_PG if mode != "none" else 0)
        self.set_control(cr0, cr3, _CR4[mode], efer | (_EFER_LMA if long_mode else 0))

    def set_control(self, cr0: int, cr3: int, cr4: int, efer: int) -> None:
        """Set what paging depends on. EFER.LMA cannot be written: it must be what CR0.PG and EFER.LME make it."""
        # Paging goes off first, as a processor wants it, and comes on last.
        self.stub.set("cr0", cr0 & ~_CR0_PG)
        wanted = {"cr4": cr4, "efer": efer, "cr3": cr3, "cr0": cr0}
        for name, value in wanted.items():
            self.stub.set(name, value)
        assert {name: self.stub.get(name) for name in wanted} == wanted

    def info_tlb(self) -> str:
        """QEMU's ``info tlb``."""
        return self.vmm.hmp("info tlb")

    def info_mem(self) -> str:
        """QEMU's ``info mem``."""
        return self.vmm.hmp("info mem")

    def gva2gpa(self, gva: int) -> int | None:
        """QEMU's ``gva2gpa``; None for ``Unmapped``."""
        answer = self.vmm.hmp(f"gva2gpa 0x{gva:x}")
        match = _GPA.fullmatch(answer)
        assert match or answer == "Unmapped\n", answer
        return int(match.group(1), 16) if match else None

    def read(self, gpa: int, nbytes: int) -> bytes | None:
        """Guest RAM; None where there is none."""
        return None if gpa in LEGACY_HOLE or gpa + nbytes > len(self.ram) else self.ram[gpa : gpa + nbytes]

    def reader(self, cbit_pos: int | None = None) -> RamReader:
        """Reads this machine's tables."""
        return RamReader(self.read, 0 if cbit_pos is None else 1 << cbit_pos)


@contextmanager
def emulated(
    *, ram_nbytes: int = RAM_NBYTES, ram_file: Path | None = None, extra: Sequence[str] = (), **options: Any
) -> Iterator[Emulated]:
    """Start the machine, stopped at reset; a skip where there is no QEMU. ``-cpu max`` knows LA57 and NX.

    ``ram_file`` is what RAM holds at first; the file is not written to, and ``ram`` cannot be.
    """
    require_qemu()
    options = {"accel": "tcg", "ram": f"{ram_nbytes >> 20}M"} | options
    extra = ["-cpu", "max", *extra]
    if ram_file is None:
        options["memfd"] = True
    else:
        options["machine"] = "q35,memory-backend=file0"
        extra += ["-object", f"memory-backend-file,id=file0,size={ram_nbytes},mem-path={ram_file},share=off"]
    with qemu(extra=extra, **options) as vmm:
        path = vmm.directory / "gdb.sock"
        vmm.hmp(f"gdbserver unix:{path},server=on,wait=off")
        with mapped_ram(vmm, ram_nbytes, ram_file) as ram:
            stub = GdbStub(str(path))
            try:
                yield Emulated(vmm, stub, ram)
            finally:
                stub.close()


@contextmanager
def mapped_ram(vmm: QemuVmm, nbytes: int, ram_file: Path | None) -> Iterator[mmap.mmap]:
    """The memfd behind a QEMU's RAM, to be written to, or the file that it came from, to be read."""
    if ram_file is not None:
        with ram_file.open("rb") as file, mmap.mmap(file.fileno(), nbytes, access=mmap.ACCESS_READ) as ram:
            yield ram
        return
    (fd,) = vmm.fds("/memfd:memory-backend-memfd (deleted)")
    with open(f"/proc/{vmm.pid}/fd/{fd}", "r+b") as memfd, mmap.mmap(memfd.fileno(), nbytes) as ram:
        yield ram
