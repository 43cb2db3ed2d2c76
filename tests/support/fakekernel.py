"""Guest RAM with a kernel in it, as far as a search for its tables looks: built here, byte by byte.

ram = FakeRam(32 * MIB, cbit=51)
kernel = ram.add_kernel(data_gpa=8 * MIB, note_gpa=0x123000)
find_kernel(Search(ram, 51))
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sevkvm.memory.source import Slot, SlotMap
from tests.support.tables import MIB2, TABLE, Tables

PAGE = 4096
KERNEL_MAP = 0xFFFF_FFFF_8000_0000
DIRECT_MAP = {4: 0xFFFF_8880_0000_0000, 5: 0xFF11_0000_0000_0000}
STACK_END = struct.pack("<Q", 0x57AC6E9D)


def elf_note(text: bytes) -> bytes:
    return struct.pack("<III12s", 11, len(text), 0, b"VMCOREINFO") + text


@dataclass(frozen=True)
class FakeKernel:
    root_gpa: int
    data_gpa: int
    data_gva: int
    uts_gpa: int
    text: bytes


class FakeRam:
    """What a search asks of GuestMemory; every page it touches is counted, as a firmware command would be."""

    def __init__(
        self, ram: int | memoryview, cbit: int | None = None, *, holes: Sequence[tuple[int, int]] = ()
    ) -> None:
        """``ram``: how many bytes of zeros, or what a guest had from gpa 0 up; ``holes`` are no RAM."""
        self.ram = bytearray(ram) if isinstance(ram, int) else ram
        self.cbit = cbit
        edges = [0, *(edge for hole in holes for edge in hole), len(self.ram)]
        self.slots = SlotMap(
            Slot(start, end - start, 0x7F00_0000_0000 + start)
            for start, end in zip(edges[::2], edges[1::2], strict=True)
        )
        self.bad_pages: set[int] = set()
        self.pages_peeked: list[int] = []
        self.peeks: list[tuple[int, int]] = []
        self.tables_read: set[int] = set()

    def put(self, gpa: int, data: bytes) -> None:
        self.ram[gpa : gpa + len(data)] = data

    def add_kernel(
        self,
        *,
        data_gpa: int,
        note_gpa: int | None = None,
        bare_gpa: int | None = None,
        data_gva: int = 0xFFFF_FFFF_9E20_0000,
        levels: int = 4,
        release: str = "6.1.0-fake",
        top_offset: int = 0x10000,
        stack: bool = True,
        pointers: bool = True,
        lines: Iterable[str] = (),
    ) -> FakeKernel:
        """Four MiB of kernel data at data_gpa, mapped by 2 MiB pages, and all RAM below in the direct map."""
        tables = Tables(mode=levels, cbit=self.cbit, next_gpa=data_gpa + top_offset)
        for offset in range(0, 2 * MIB2, MIB2):
            tables.map(data_gva + offset, data_gpa + offset, MIB2, nx=True)
        for gpa in range(0, len(self.ram), MIB2):
            tables.map(DIRECT_MAP[levels] + gpa, gpa, MIB2, nx=True)
        self.put(data_gpa, bytes(2 * MIB2))
        for gpa, entries in tables.pages.items():
            self.put(gpa, TABLE.pack(*entries))
        uts = 0x21_0000
        self.put(data_gpa + uts, b"Linux".ljust(65, b"\0") + b"fake".ljust(65, b"\0") + release.encode())
        if stack:
            self.put(data_gpa, STACK_END)
        text = self._text(
            tables, data_gpa, data_gva, release, [f"SYMBOL(init_uts_ns)={data_gva + uts:x}", *lines]
        )
        for number, gpa in enumerate((note_gpa, bare_gpa)):
            if gpa is not None:
                self.put(gpa, (text if number else elf_note(text)).ljust(2 * PAGE - PAGE * number, b"\0"))
                if pointers:
                    pointer = struct.pack("<Q", DIRECT_MAP[levels] + gpa)
                    self.put(data_gpa + 0x30_1230 + 8 * number, pointer)
        return FakeKernel(tables.root, data_gpa, data_gva, data_gpa + uts, text)

    def _text(
        self, tables: Tables, data_gpa: int, data_gva: int, release: str, lines: Iterable[str]
    ) -> bytes:
        phys_base = data_gpa - (data_gva - KERNEL_MAP)
        said = [
            f"OSRELEASE={release}",
            "BUILD-ID=0123456789abcdef",
            "PAGESIZE=4096",
            f"SYMBOL(swapper_pg_dir)={data_gva + tables.root - data_gpa:x}",
            f"NUMBER(phys_base)={phys_base}",
            f"NUMBER(pgtable_l5_enabled)={int(tables.levels == 5)}",
            "KERNELOFFSET=1d000000",
            f"NUMBER(sme_mask)={tables.mask}",
            *lines,
        ]
        return "".join(line + "\n" for line in said).encode()

    # ---- what GuestMemory does

    def peek(self, gpa: int, buffer: memoryview) -> int:
        self.peeks.append((gpa, len(buffer)))
        done = 0
        while done < len(buffer) and self._readable(gpa + done):
            take = min(PAGE - (gpa + done) % PAGE, len(buffer) - done)
            buffer[done : done + take] = self.ram[gpa + done : gpa + done + take]
            self.pages_peeked.append((gpa + done) // PAGE)
            done += take
        return done

    def read(self, gpa: int, nbytes: int, private: bool = True) -> bytes:
        return bytes(self.ram[gpa : gpa + nbytes])

    def read_tables(self, gpas: Sequence[int], *, keep: bool = True) -> list[bytes | None]:
        self.tables_read.update(gpas)
        return [bytes(self.ram[gpa : gpa + PAGE]) if self._readable(gpa) else None for gpa in gpas]

    def _readable(self, gpa: int) -> bool:
        return self.slots.find(gpa) is not None and gpa // PAGE * PAGE not in self.bad_pages
