"""gdb opens our ELF cores: registers of every vCPU, memory at physical and at virtual addresses."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from sevkvm.dump import DumpFormat, DumpOptions, dump_guest, prepare
from tests.support.fakeguest import FakeGuest, UniformPages, pattern, vcpu_state
from tests.support.tables import Tables

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(shutil.which("gdb") is None, reason="gdb not installed (Debian: apt install gdb)"),
]
RAM = pattern(16 * 4096)
HIGH = pattern(4 * 4096, seed=9)
GVA = 0xFFFF_8880_0000_0000


def gdb(core: Path, *commands: str) -> str:
    argv = ["gdb", "-nx", "-batch"]
    for command in commands:
        argv += ["-ex", command]
    done = subprocess.run([*argv, str(core)], capture_output=True, text=True, timeout=60, check=False)
    return done.stdout


def core_of(path: Path, guest: FakeGuest, **options) -> Path:
    options = DumpOptions(format=DumpFormat.ELF, **options)
    dump_guest(guest, options, UniformPages(), prepare(str(path)))
    return path


def open_core(path: Path, *commands: str) -> str:
    return gdb(path, "set architecture i386:x86-64", f"core-file {path}", *commands)


def quads(data: bytes, offset: int) -> list[str]:
    return [f"0x{value:016x}" for value in struct.unpack_from("<2Q", data, offset)]


def test_registers_and_memory(tmp_path):
    states = [vcpu_state(0), vcpu_state(1)]
    core = core_of(tmp_path / "core", FakeGuest({0: RAM, 0x1_0000_0000: HIGH}, states=states))
    text = open_core(core, "info registers", "x/2xg 0x3008", "x/2xg 0x100001008", "info threads")
    shown = dict(re.findall(r"^(\w+) +(0x[0-9a-f]+)", text, re.M))
    for name in ("rax", "r8", "r15", "rsp", "rip"):
        assert int(shown[name], 16) == getattr(states[0].regs, name), name
    assert int(shown["gs"], 16) == states[0].sregs.gs.selector
    for data, offset in ((RAM, 0x3008), (HIGH, 0x1008)):
        assert "\t".join(quads(data, offset)) in text
    assert "LWP 2" in text


def test_a_hole_is_an_error_not_zeros(tmp_path):
    guest = FakeGuest({0: RAM}, bad_pages={0x4000}, states=[vcpu_state(0)])
    core = core_of(tmp_path / "core", guest)
    text = open_core(core, "x/2xg 0x3008", "x/2xg 0x5008")
    for offset in (0x3008, 0x5008):
        assert "\t".join(quads(RAM, offset)) in text
    argv = ["gdb", "-nx", "-batch", "-ex", f"core-file {core}", "-ex", "x/2xg 0x4008"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert "Cannot access memory at address 0x4008" in done.stderr


def test_virtual_addresses(tmp_path):
    tables = Tables()
    tables.map(GVA, 0x5000)
    tables.map(GVA + 0x1000, 0x2000)
    guest = FakeGuest({0: RAM}, states=[vcpu_state(0)], tables=tables)
    core = core_of(tmp_path / "core", guest, gva=(GVA, GVA + 0x2000))
    text = open_core(core, f"x/2xg 0x{GVA + 0x1008:x}")
    assert "\t".join(quads(RAM, 0x2008)) in text


def test_a_core_without_registers_still_shows_memory(tmp_path):
    core = core_of(tmp_path / "core", FakeGuest({0: RAM}, states=None))
    assert "\t".join(quads(RAM, 0x3008)) in open_core(core, "x/2xg 0x3008")
