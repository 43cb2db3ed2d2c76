"""A small boot program that sets up paging by itself: tests/csrc/boot_paging.S, run until it stops.

run_boot_program(machine, "PAE", tmp_path)
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
_HEADER = struct.Struct("<4xII")  # where it stops, what it put into CR3


def assemble(paging: str, directory: Path) -> bytes:
    """The flat binary; ``paging`` is 32, PSE, PAE or 4LEVEL. A skip where there is no compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler (cc, gcc) to assemble the boot program with")
    program = directory / f"boot_{paging}"
    argv = [compiler, "-m32", "-nostdlib", "-static", "-no-pie", *_LAYOUT, f"-DPAGING_{paging}"]
    subprocess.run([*argv, "-o", program, TEST_CSRC / "boot_paging.S"], check=True, timeout=120)
    return program.read_bytes()


def run_boot_program(machine: Emulated, paging: str, directory: Path) -> int:
    """Start the processor of a machine at reset on it; returns CR3 when it has stopped. TimeoutError if it does not."""
    code = assemble(paging, directory)
    stop_gva, cr3 = map(int, _HEADER.unpack_from(code))
    machine.ram[LOAD_GPA : LOAD_GPA + len(code)] = code
    stub = machine.stub
    stub.set("cs", 0)
    stub.set("rip", LOAD_GPA)
    assert stub.request(f"Z0,{stop_gva:x},1") == "OK"
    assert stub.request("c").startswith("T05")
    assert (stub.get("rip"), stub.get("cr3")) == (stop_gva, cr3)
    return cr3
