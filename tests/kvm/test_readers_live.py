"""Files of a guest that ran meanwhile carry a note of ours, which readers skip."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sevkvm.dump import DumpFormat
from tests.support.readers.dumps import Dumps, sealed
from tests.support.readers.programs import HERE, require_libkdumpfile, require_module, require_program, run

pytestmark = pytest.mark.kvm
CELL = (4, 51, "strip")


@pytest.mark.parametrize("file_format", [DumpFormat.ELF, DumpFormat.KDUMP])
def test_they_open(reader_dumps: Dumps, file_format: DumpFormat, tmp_path: Path) -> None:
    core, told = reader_dumps.dump(CELL, file_format, live=True), reader_dumps.told(CELL)
    run(require_program("makedumpfile", "makedumpfile"), "--dump-dmesg", core, tmp_path / "log")
    assert told.missing_log((tmp_path / "log").read_text()) == []
    said = json.loads(run(require_libkdumpfile(), HERE / "kdumpfile_says.py", core, "{}", "0"))
    assert (said["release"], said["version"], said["nodename"]) == (told.release, told.version, told.nodename)
    drgn = require_module("drgn")
    assert "IS_LINUX_KERNEL" in run(drgn, "-q", "-c", core, "-e", "print(prog.flags, prog.platform)")


def test_gdb(reader_dumps: Dumps) -> None:
    linux = sealed(*CELL[:2])
    (banner,) = linux.image.landmarks
    core = f"core-file {reader_dumps.dump(CELL, live=True)}"
    said = run(
        require_program("gdb", "gdb"), "-nx", "-batch", "-iex", "set print elements 600", "-ex", core,
        "-ex", "info registers rip", "-ex", f"x/s {banner.gpa:#x}",
    )  # fmt: skip
    assert linux.plain.facts["version"] in said
    assert f"{linux.vcpus[0].regs.rip:#x}" in said
