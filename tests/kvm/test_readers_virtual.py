"""ELF files with virtual addresses (``--virtual``): gdb reads the kernel by them, and other readers still open it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.kvm import test_readers_drgn as drgn
from tests.kvm import test_readers_kdumpfile as kdumpfile
from tests.kvm.test_readers_gdb import gdb
from tests.support.readers.dumps import CELLS, Cell, Dumps, sealed
from tests.support.readers.programs import require_program, run
from tests.support.readers.symbols import require_vmlinux

pytestmark = pytest.mark.kvm

OPENS = [cell for cell in CELLS if cell[2] != "alias"]


def name_of(cell: Cell) -> str:
    return f"{cell[0]}-level-c{cell[1]}-{cell[2]}"


@pytest.mark.parametrize("es", [False, True], ids=["sev", "sev-es"])
@pytest.mark.parametrize("cell", CELLS, ids=name_of)
def test_gdb_at_kernel_addresses(reader_dumps: Dumps, cell: Cell, es: bool) -> None:
    facts = sealed(*cell[:2]).plain.facts
    banner = int(facts["symbol.linux_banner"], 16)
    assert banner >= 0xFFFF_FFFF_8000_0000
    said = gdb(reader_dumps.dump(cell, es=es, virtual=True), f"x/s {banner:#x}")
    assert facts["version"] in said


@pytest.mark.parametrize("levels", [4, 5])
def test_gdb_reads_what_each_vcpu_runs(reader_dumps: Dumps, levels: int) -> None:
    """The code at rip, by gva, is what the kernel's image has there: the bytes at its gpa, by gpa."""
    cell = (levels, 51, "strip")
    linux = sealed(*cell[:2])
    (banner,) = linux.image.landmarks
    rips = [vcpu.regs.rip for vcpu in linux.vcpus]
    assert all(rip >> 30 == banner.gva >> 30 for rip in rips), "stopped in the kernel's image"
    for rip in rips:
        gpa = rip - banner.gva + banner.gpa
        said = gdb(reader_dumps.dump(cell, virtual=True), f"x/16xb {rip:#x}", f"x/16xb {gpa:#x}")
        found = [re.findall(r"0x[0-9a-f]{2}\b", line.partition(":")[2]) for line in said.splitlines()]
        by_gva, by_gpa = "".join(map("".join, found[-4:-2])), "".join(map("".join, found[-2:]))
        assert len(by_gva) == 64
        assert by_gva == by_gpa


def test_it_grows_by_headers_alone(reader_dumps: Dumps) -> None:
    cell = (4, 51, "strip")
    without, with_them = reader_dumps.dump(cell), reader_dumps.dump(cell, virtual=True)
    assert 0 < with_them.stat().st_size - without.stat().st_size < 64 << 10


@pytest.mark.parametrize("cell", OPENS, ids=name_of)
def test_libkdumpfile(reader_dumps: Dumps, cell: Cell) -> None:
    told = reader_dumps.told(cell)
    said = kdumpfile.ask(reader_dumps.dump(cell, virtual=True), {}, "0")
    assert (said["release"], said["version"], said["nodename"]) == (told.release, told.version, told.nodename)


@pytest.mark.parametrize("cell", OPENS, ids=name_of)
def test_makedumpfile(reader_dumps: Dumps, cell: Cell, tmp_path: Path) -> None:
    makedumpfile = require_program("makedumpfile", "makedumpfile")
    core = reader_dumps.dump(cell, virtual=True)
    run(makedumpfile, "-c", "-d", "31", core, tmp_path / "small")
    assert 1 << 20 < (tmp_path / "small").stat().st_size < core.stat().st_size // 8
    run(makedumpfile, "--dump-dmesg", tmp_path / "small", tmp_path / "log")
    assert reader_dumps.told(cell).missing_log((tmp_path / "log").read_text()) == []


@pytest.mark.parametrize("levels", [4, 5])
def test_drgn(reader_dumps: Dumps, levels: int) -> None:
    cell = (levels, 51, "strip")
    told = reader_dumps.told(cell)
    drgn.agrees(drgn.ask(reader_dumps.dump(cell, virtual=True), told), told)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("cell", [(4, 51, "strip")], ids=name_of)
def test_crash(reader_dumps: Dumps, cell: Cell, tmp_path: Path) -> None:
    crash = require_program("crash", "crash")
    told = reader_dumps.told(cell)
    (tmp_path / "commands").write_text("set scroll off\nsys\nlog\nquit\n")
    vmlinux = require_vmlinux(told.release)
    core = reader_dumps.dump(cell, virtual=True)
    said = run(crash, "-s", "-i", tmp_path / "commands", vmlinux, core, seconds=400, cwd=tmp_path)
    assert told.missing_log(said) == []
    assert f"RELEASE: {told.release}" in said
