"""drgn opens our ELF files of an encrypted Linux without a flag, and lists what the guest printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sevkvm.dump import DumpFormat
from sevkvm.lab.initrd import KEEPERS
from tests.support.readers.dumps import Cell, Dumps, cells
from tests.support.readers.programs import HERE, require_module, run
from tests.support.readers.symbols import require_vmlinux
from tests.support.readers.told import Told

pytestmark = pytest.mark.kvm


def ask(core: Path, told: Told) -> dict[str, Any]:
    drgn = require_module("drgn")
    vmlinux = require_vmlinux(told.release)
    return dict(json.loads(run(drgn, "-q", "-c", core, "-s", vmlinux, HERE / "drgn_says.py").splitlines()[0]))


def agrees(said: dict[str, Any], told: Told) -> None:
    assert told.missing_processes({int(pid): comm for pid, comm in said["processes"].items()}) == {}
    assert told.missing_log(said["log"]) == []
    assert (said["release"], said["version"], said["nodename"]) == (told.release, told.version, told.nodename)
    # each process's own memory: its page tables are under no vCPU's CR3
    assert said["secrets"] == {f"keeper-{keeper.name}": keeper.secret.decode() for keeper in KEEPERS}
    assert said["commands"] == [f"/bin/keeper-{keeper.name}" for keeper in KEEPERS]


@pytest.mark.parametrize("cell", cells(lambda levels, mode: mode != "keep"))
def test_processes_log_and_uname(reader_dumps: Dumps, cell: Cell) -> None:
    told = reader_dumps.told(cell)
    agrees(ask(reader_dumps.dump(cell), told), told)


@pytest.mark.parametrize("levels", [4, 5])
@pytest.mark.parametrize("es", [False, True], ids=["sev", "sev-es"])
def test_kdump_and_guests_without_registers(reader_dumps: Dumps, levels: int, es: bool) -> None:
    """Of kdump files drgn reads through libkdumpfile, which starts from CR3 where the file tells it."""
    cell = (levels, 51, "strip")
    told = reader_dumps.told(cell)
    for file_format in (DumpFormat.KDUMP, DumpFormat.ELF):
        agrees(ask(reader_dumps.dump(cell, file_format, es=es), told), told)


def test_it_opens_without_symbols_too(reader_dumps: Dumps) -> None:
    drgn = require_module("drgn")
    core = reader_dumps.dump((4, 51, "strip"))
    assert "IS_LINUX_KERNEL" in run(drgn, "-q", "-c", core, "-e", "print(prog.flags, prog.platform)")
