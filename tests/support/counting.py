"""A QEMU guest that counts: its progress tells whether its vCPUs run.

with counting_guest(tmp_path) as guest:
    guest.moves()
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.qemu import QemuVmm, qemu

COUNT_GPA = 0x500
CODE_GPA = 0x600
LOOP_GPA = CODE_GPA + 4  # of `incl`; segments start at 0, so that it is also what IP says
JUMP_GPA = CODE_GPA + 9
LOOP = range(LOOP_GPA, LOOP_GPA + 7)
_ROM_NBYTES = 0x10000
# xor %ax,%ax; mov %ax,%ds; loop: incl 0x500; jmp loop
_CODE = bytes.fromhex("31c0 8ed8 66ff060005 ebf9")
_RESET = bytes.fromhex("ea 0006 0000")  # ljmp $0,$0x600
_RESET_AT = 0xFFF0
_PATIENCE = 10.0  # seconds, on a machine that is busy
_STILL = 0.1


@dataclass
class CountingGuest:
    """The guest; its count is read from the VMM's memory, which needs nothing of the VMM."""

    vmm: QemuVmm
    ram_hva: int

    @property
    def count(self) -> int:
        """How often it went round."""
        return int.from_bytes(self.memory(COUNT_GPA, 4), "little")

    def memory(self, gpa: int, nbytes: int) -> bytes:
        """What the VMM holds there."""
        with open(f"/proc/{self.vmm.pid}/mem", "rb", buffering=0) as memory:
            return os.pread(memory.fileno(), nbytes, self.ram_hva + gpa)

    def moves(self) -> bool:
        """It counts on, within a generous time."""
        before, deadline = self.count, time.monotonic() + _PATIENCE
        while self.count == before and time.monotonic() < deadline:
            time.sleep(0.01)
        return self.count != before

    def stands(self) -> bool:
        """It comes to a stop within a generous time: two looks in a row are alike."""
        deadline = time.monotonic() + _PATIENCE
        before = self.count
        while time.monotonic() < deadline:
            time.sleep(_STILL)
            now = self.count
            if now == before:
                return True
            before = now
        return False


@contextmanager
def counting_guest(directory: Path, **options: Any) -> Iterator[CountingGuest]:
    """Start it; see ``qemu_argv`` for the options."""
    rom = bytearray(b"\xf4" * _ROM_NBYTES)
    rom[_RESET_AT : _RESET_AT + len(_RESET)] = _RESET
    path = directory / "counting.rom"
    path.write_bytes(rom)
    code = directory / "counting.code"
    code.write_bytes(_CODE)
    extra = ["-bios", str(path), "-device", f"loader,file={code},addr={CODE_GPA:#x},force-raw=on"]
    with qemu(ram="16M", machine="pc", stopped=False, extra=extra, **options) as vmm:
        guest = CountingGuest(vmm, vmm.gpa2hva(0))
        assert guest.moves()
        yield guest
