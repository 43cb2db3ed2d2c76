"""libkdumpfile (Debian's Python binding) opens our ELF files of an encrypted Linux without a flag."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from sevkvm.dump import DumpFormat
from tests.support.readers.dumps import Cell, Dumps, cells, sealed
from tests.support.readers.isf import Types
from tests.support.readers.programs import HERE, require_libkdumpfile, run
from tests.support.readers.symbols import require_vmlinux

pytestmark = pytest.mark.kvm


def ask(core: Path, offsets: dict[str, int], init_task: str) -> dict[str, object]:
    python = require_libkdumpfile()
    answer = run(python, HERE / "kdumpfile_says.py", core, json.dumps(offsets), init_task)
    return dict(json.loads(answer))


@pytest.mark.parametrize("cell", cells(lambda levels, mode: True))
def test_uname_at_a_kernel_address(reader_dumps: Dumps, cell: Cell) -> None:
    told = reader_dumps.told(cell)
    said = ask(reader_dumps.dump(cell), {}, "0")
    assert (said["format"], said["release_of_file"]) == ("elf", told.release)
    assert (said["release"], said["version"], said["nodename"]) == (told.release, told.version, told.nodename)


@pytest.mark.parametrize("cell", cells(lambda levels, mode: True))
def test_processes(reader_dumps: Dumps, cell: Cell) -> None:
    told = reader_dumps.told(cell)
    with require_vmlinux(told.release).open("rb") as file:
        members = Types(ELFFile(file).get_section_by_name(".BTF").data()).user["task_struct"]["fields"]
    offsets = {name: members[name]["offset"] for name in ("tasks", "pid", "comm")}
    init_task = sealed(*cell[:2]).plain.facts["symbol.init_task"]
    said = ask(reader_dumps.dump(cell), offsets, init_task)
    assert told.missing_processes({int(pid): comm for pid, comm in dict(said["processes"]).items()}) == {}


@pytest.mark.parametrize("mode", ["keep", "strip"])
@pytest.mark.parametrize("file_format", [DumpFormat.ELF, DumpFormat.KDUMP])
@pytest.mark.parametrize("levels", [4, 5])
def test_a_guest_without_registers(
    reader_dumps: Dumps, levels: int, file_format: DumpFormat, mode: str
) -> None:
    cell = (levels, 51, mode)
    told = reader_dumps.told(cell)
    said = ask(reader_dumps.dump(cell, file_format, es=True), {}, "0")
    assert (said["release"], said["version"], said["nodename"]) == (told.release, told.version, told.nodename)
