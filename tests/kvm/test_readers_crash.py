"""crash opens our ELF and kdump files of an encrypted Linux without a flag.

It reads the kernel's debug symbols for 20 s each time, so of the table's cells there are only some. Version 8.0.2
cannot list this kernel's tasks with ``ps`` on any dump, QEMU's own included; the list itself it can follow.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sevkvm.dump import DumpFormat
from tests.support.readers.dumps import Cell, Dumps
from tests.support.readers.programs import require_program, run
from tests.support.readers.symbols import require_vmlinux

pytestmark = [pytest.mark.kvm, pytest.mark.timeout(600)]

COMMANDS = """\
set scroll off
sys
log
list task_struct.tasks -s task_struct.pid,comm -h init_task
quit
"""


@pytest.mark.parametrize(
    ("cell", "file_format", "es"),
    [
        ((4, 51, "strip"), DumpFormat.KDUMP, True),
        ((5, 47, "keep"), DumpFormat.ELF, False),
        ((4, 47, "alias"), DumpFormat.ELF, False),
    ],
    ids=["kdump-4-level-c51-strip-es", "5-level-c47-keep", "4-level-c47-alias"],
)
def test_processes_log_and_uname(
    reader_dumps: Dumps, cell: Cell, file_format: DumpFormat, es: bool, tmp_path: Path
) -> None:
    crash = require_program("crash", "crash")
    told = reader_dumps.told(cell)
    vmlinux = require_vmlinux(told.release)
    commands = tmp_path / "commands"
    commands.write_text(COMMANDS)
    said = run(
        crash,
        "-s",
        "-i",
        commands,
        vmlinux,
        reader_dumps.dump(cell, file_format, es=es),
        seconds=400,
        cwd=tmp_path,
    )
    found = re.findall(r"^ *pid = (\d+),\n *comm = \"([^\"]*)\"", said, re.MULTILINE)
    assert told.missing_processes({int(pid): comm.partition("\\0")[0] for pid, comm in found}) == {}
    assert told.missing_log(said) == []
    assert f"RELEASE: {told.release}" in said
    assert f"VERSION: {told.version}" in said
    assert f"NODENAME: {told.nodename}" in said
