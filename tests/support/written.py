"""A small guest to write to, on the pretend host in this process, and what its memory must then be.

Its virtual pages lie scattered over two slots, one of them shared with the host, one mapped twice; there is a ROM, too.

    small = SmallGuest("old", policy=0)
    small.guest.write_virtual(BASE + 5, b"...", small.form)
    assert small.plaintext() == small.expect(BASE + 5, b"...")
"""

from __future__ import annotations

from typing import Any

from sevkvm.abi import sev
from sevkvm.guest import Guest
from sevkvm.guestparts import GuestParts
from sevkvm.host.kvm import VmFd
from sevkvm.memory.guest import GuestMemory
from sevkvm.memory.hva import HvaSource
from sevkvm.memory.policy import ask_kernel
from sevkvm.memory.sevdbg import SevDbgSource
from sevkvm.memory.source import Slot, SlotMap
from sevkvm.shim.generation import Generation
from sevkvm.shim.kernel import Kernel
from sevkvm.shim.port import FakePort, launch_guest
from tests.support.tables import TABLE, Tables

PAGE, BLOCK = 4096, 16
CBIT = 51
BASE = 0xFFFF_8880_0000_0000
HIGH, ROM = 0x1_0000_0000, 0xFFFF_F000
NPAGES = {0: 14, ROM: 1, HIGH: 4}
TABLES = 0x9000
# where BASE's pages are, in order: across the slots, backwards, the shared one in the middle, one twice
PLACES = (0x3000, 0x1000, HIGH + 0x2000, 0x4000, HIGH, 0x2000, 0x5000, HIGH + 0x3000, 0x3000)
SHARED = 0x4000
WINDOW = len(PLACES) * PAGE
HOLE_GVA, ROM_GVA, MMIO_GVA = BASE + WINDOW, BASE + 0x10_0000, BASE + 0x11_0000
MMIO = 0xFEE0_0000

Plaintext = dict[int, bytearray]


def contents(gpa: int, nbytes: int) -> bytearray:
    """Bytes that differ from block to block."""
    return bytearray(
        (at * 7 + (at >> 4) * 13 + (gpa >> 12) * 31 + (gpa >> 32) + 5) & 0xFF for at in range(nbytes)
    )


class SmallGuest:
    """``policy`` None: a guest without encryption. ``holder``: whether it is held now, and how often it was."""

    def __init__(self, generation: Generation = "new", policy: int | None = 0) -> None:
        tables = Tables(4, None if policy is None else CBIT, TABLES)
        for number, gpa in enumerate(PLACES):
            tables.map(BASE + number * PAGE, gpa, private=policy is not None and gpa != SHARED)
        tables.map(ROM_GVA, ROM)
        tables.map(MMIO_GVA, MMIO, private=False)
        self.form = tables.form
        self.start: Plaintext = {gpa: contents(gpa, npages * PAGE) for gpa, npages in NPAGES.items()}
        for gpa, entries in tables.pages.items():
            self.start[0][gpa : gpa + PAGE] = TABLE.pack(*entries)
        self.kernel = Kernel(generation=generation)
        self.made = launch_guest(
            {gpa: bytes(data) for gpa, data in self.start.items()},
            policy=policy,
            shared=[(SHARED, PAGE)],
            port=FakePort(kernel=self.kernel),
        )
        self.port = self.made.port
        self._out = self.port.map(PAGE).hva
        vm = VmFd(self.port, self.made.vm_fd)
        info = ask_kernel(vm)
        slots = SlotMap(
            Slot(*slot, "rom" if slot[0] == ROM else "ram", slot[0] == ROM) for slot in self.made.slots
        )
        self.memory = GuestMemory(slots, HvaSource(self.port), SevDbgSource(vm) if info.encrypted else None)
        self.holder = Holder()
        self.guest = Guest(
            GuestParts(
                pid=self.port.pid,
                vm_fd=self.made.vm_fd,
                name="small",
                sev=info,
                slots=slots,
                memory=self.memory,
                vcpus=[],
                holder=self.holder,
                costs=dict,
                warn=lambda text: None,
                no_registers="it has none",
            )
        )
        self.encrypted = policy is not None

    def stored(self) -> Plaintext:
        """All its memory as the host sees it."""
        return {gpa: bytearray(self.port.read(hva, nbytes)) for gpa, nbytes, hva in self.made.slots}

    def plaintext(self) -> Plaintext:
        """All its memory as the guest sees it: whole pages, which no kernel gets wrong."""
        found = self.stored()
        for start, nbytes, hva in self.made.slots if self.encrypted else ():
            for offset in range(0, nbytes, PAGE):
                if start + offset == SHARED:
                    continue
                request = sev.pack_dbg(hva + offset, self._out, PAGE)
                self.port.sev_op(self.made.vm_fd, sev.SevCmd.DBG_DECRYPT, request)
                found[start][offset : offset + PAGE] = self.port.read(self._out, PAGE)
        return found

    def expect(self, gva: int, data: bytes) -> Plaintext:
        """What its memory is after ``data`` was written at ``gva`` byte by byte."""
        return self.expect_bytes((gpa_of(gva + at), byte) for at, byte in enumerate(data))

    def expect_bytes(self, pairs: Any) -> Plaintext:
        """What its memory is after these (gpa, byte) were written one after the other."""
        after = {gpa: bytearray(data) for gpa, data in self.start.items()}
        for gpa, byte in pairs:
            start = max(slot for slot in NPAGES if slot <= gpa)
            after[start][gpa - start] = byte
        return after

    def notes(self) -> list[str]:
        """What the kernel did wrong without a word."""
        return [note for record in self.kernel.log.records for note in record.notes]

    def commands(self) -> dict[str, int]:
        """Firmware commands so far."""
        counts = self.kernel.firmware.counts
        return {name: counts[name] for name in ("DBG_DECRYPT", "DBG_ENCRYPT")}


class Holder:
    """Counts holds."""

    def __init__(self) -> None:
        self.holds = 0
        self.held = False

    def hold(self) -> None:
        assert not self.held
        self.held = True
        self.holds += 1

    def release(self) -> None:
        assert self.held
        self.held = False


def gpa_of(gva: int) -> int:
    """Where a byte of the window is."""
    number, offset = divmod(gva - BASE, PAGE)
    return PLACES[number] + offset
