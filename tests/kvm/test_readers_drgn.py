"""drgn opens our ELF files of an encrypted Linux without a flag, and lists what the guest printed."""

from __future__ import annotations

import json

import pytest

from sevkvm.lab.initrd import KEEPERS
from tests.support.readers.dumps import Dumps, cells
from tests.support.readers.programs import HERE, require_module, run
from tests.support.readers.symbols import require_vmlinux

pytestmark = pytest.mark.kvm


@pytest.mark.parametrize("cell", cells(lambda levels, mode: mode != "keep"))
def test_processes_log_and_uname(reader_dumps: Dumps, cell) -> None:
    drgn = require_module("drgn")
    told = reader_dumps.told(cell)
    vmlinux = require_vmlinux(told.release)
    core = reader_dumps.dump(cell)
    said = json.loads(run(drgn, "-q", "-c", core, "-s", vmlinux, HERE / "drgn_says.py").splitlines()[0])
    assert told.missing_processes({int(pid): comm for pid, comm in said["processes"].items()}) == {}
    assert told.missing_log(said["log"]) == []
    assert (said["release"], said["version"], said["nodename"]) == (told.release, told.version, told.nodename)
    # each process's own memory: its page tables are under no vCPU's CR3
    assert said["secrets"] == {f"keeper-{keeper.name}": keeper.secret.decode() for keeper in KEEPERS}
    assert said["commands"] == [f"/bin/keeper-{keeper.name}" for keeper in KEEPERS]


def test_it_opens_without_symbols_too(reader_dumps: Dumps) -> None:
    drgn = require_module("drgn")
    cell = (4, 51, "strip")
    told = reader_dumps.told(cell)
    symbols = reader_dumps.result(cell)
    assert symbols.osrelease == told.release
    said = run(drgn, "-q", "-c", reader_dumps.dump(cell), "-e", "print(prog.flags, prog.platform)")
    assert "IS_LINUX_KERNEL" in said
