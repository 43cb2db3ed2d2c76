"""A small boot program that sets up paging by itself: tests/csrc/boot_paging.S, run until it stops.

BootProgram(machine, "PAE", tmp_path)
machine.info_tlb()
"""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from tests.support.build import TEST_CSRC
from tests.support.emulated import Emulated

LOAD_GPA = 0x7C00
_LAYOUT = ("-Wl,-Ttext=0x7c00", "-Wl,--oformat=binary", "-Wl,--build-id=none")
STACK_GPA = 0x7000
_HEADER = struct.Struct("<4x5I")  # where it stops, what it put into CR3, and what probe() needs


def assemble(paging: str, directory: Path) -> bytes:
    """The flat binary; ``paging`` is 32, PSE, PAE or 4LEVEL. A skip where there is no compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler (cc, gcc) to assemble the boot program with")
    program = directory / f"boot_{paging}"
    argv = [compiler, "-m32", "-nostdlib", "-static", "-no-pie", *_LAYOUT, f"-DPAGING_{paging}"]
    subprocess.run([*argv, "-o", program, TEST_CSRC / "boot_paging.S"], check=True, timeout=120)
    return program.read_bytes()


class BootProgram:
    """The program, run until its tables are in use. TimeoutError if it does not come that far."""

    def __init__(self, machine: Emulated, paging: str, directory: Path) -> None:
        code = assemble(paging, directory)
        stop_gva, self.cr3, self._probe_gva, self._probed_gva, self._fault_gva = _HEADER.unpack_from(code)
        machine.ram[LOAD_GPA : LOAD_GPA + len(code)] = code
        self._machine = machine
        machine.stub.set("cs", 0)
        for gva in (stop_gva, self._probed_gva, self._fault_gva):
            assert machine.stub.request(f"Z0,{gva:x},1") == "OK"
        assert self._run(LOAD_GPA) == stop_gva
        assert machine.stub.get("cr3") == self.cr3

    def probe(self, gva: int) -> int | None:
        """Let the processor read a byte; the error code of its page fault, or None if there was none."""
        stub = self._machine.stub
        stub.set("cr3", self.cr3)  # forgets what it knows of the tables
        stub.set("rax", gva)
        stub.set("rsp", STACK_GPA)
        if self._run(self._probe_gva) == self._probed_gva:
            return None
        assert stub.get("rip") == self._fault_gva
        rsp = stub.get("rsp")
        return int.from_bytes(self._machine.ram[rsp : rsp + 4], "little")

    def _run(self, gva: int) -> int:
        """Run from here to the next of the places where it stops."""
        stub = self._machine.stub
        stub.set("rip", gva)
        assert stub.request("c").startswith("T05")
        return stub.get("rip")
