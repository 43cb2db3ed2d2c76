"""gdb opens our ELF files of an encrypted Linux: registers, and memory at guest-physical or -virtual addresses."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sevkvm.dump import DumpFormat, DumpOptions, dump_guest, prepare
from tests.support.fakeguest import UniformPages
from tests.support.readers.dumps import Cell, Dumps, cells, sealed
from tests.support.readers.programs import require_program, run
from tests.support.readers.sealedguest import SealedGuest

pytestmark = pytest.mark.kvm


def gdb(core: Path, *commands: str) -> str:
    words = [word for command in commands for word in ("-ex", command)]
    return run(
        require_program("gdb", "gdb"),
        "-nx",
        "-batch",
        "-iex",
        "set print elements 600",
        "-ex",
        f"core-file {core}",
        *words,
    )


@pytest.mark.parametrize("cell", cells(lambda levels, mode: True))
def test_registers_of_each_vcpu_and_memory_by_gpa(reader_dumps: Dumps, cell: Cell) -> None:
    linux = sealed(*cell[:2])
    (banner,) = linux.image.landmarks
    said = gdb(reader_dumps.dump(cell), "thread apply all info registers rip rsp", f"x/s {banner.gpa:#x}")
    assert linux.plain.facts["version"] in said
    for name in ("rip", "rsp"):
        found = re.findall(rf"^{name} +(0x[0-9a-f]+)", said, re.MULTILINE)
        assert sorted(int(value, 16) for value in found) == sorted(
            getattr(vcpu.regs, name) for vcpu in linux.vcpus
        )


def test_a_guest_without_registers(reader_dumps: Dumps) -> None:
    linux = sealed(4, 51)
    (banner,) = linux.image.landmarks
    said = gdb(reader_dumps.dump((4, 51, "strip"), es=True), f"x/s {banner.gpa:#x}")
    assert linux.plain.facts["version"] in said


def test_kernel_memory_by_gva(tmp_path: Path) -> None:
    linux = sealed(4, 51)
    (banner,) = linux.image.landmarks
    options = DumpOptions(DumpFormat.ELF, gva=(0xFFFF_FFFF_8000_0000, 0xFFFF_FFFF_C000_0000))
    dump_guest(SealedGuest(linux), options, UniformPages(True), prepare(str(tmp_path / "core")))
    assert linux.plain.facts["version"] in gdb(tmp_path / "core", f"x/s {banner.gva:#x}")
