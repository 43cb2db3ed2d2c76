"""volatility3 opens our ELF files of an encrypted Linux; it has no 5-level paging, and then lists nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.readers.dumps import Cell, Dumps, cells
from tests.support.readers.programs import require_module, run
from tests.support.readers.symbols import require_isf

pytestmark = pytest.mark.kvm

CELLS = [
    cell
    for cell in cells(lambda levels, mode: mode != "keep" and levels == 4, AssertionError)
    if cell.values[0][:2] != (5, 47)
]


def ask(isf: Path, core: Path, plugin: str) -> list[dict[str, object]]:
    vol = require_module("volatility3")
    cache = isf / "cache"  # of symbol tables, which it would keep in the user's home
    cache.mkdir(exist_ok=True)
    options = ["-q", "-r", "json", "--cache-path", cache, "-s", isf, "-f", core]
    answer = run(vol, *options, plugin, seconds=200)
    return list(json.loads(answer[answer.index("[") : answer.rindex("]") + 1]))


@pytest.mark.parametrize("cell", CELLS)
def test_processes(reader_dumps: Dumps, cell: Cell) -> None:
    require_module("volatility3")
    told = reader_dumps.told(cell)
    rows = ask(require_isf(told.release), reader_dumps.dump(cell), "linux.pslist")
    assert told.missing_processes({int(str(row["PID"])): str(row["COMM"]) for row in rows}) == {}


def test_log_and_uname(reader_dumps: Dumps) -> None:
    require_module("volatility3")
    cell = (4, 51, "strip")
    told = reader_dumps.told(cell)
    isf, core = require_isf(told.release), reader_dumps.dump(cell)
    rows = ask(isf, core, "linux.kmsg")
    found = {f"[{float(str(row['timestamp'])):12.6f}] {row['line']}".rstrip() for row in rows}
    # its kmsg stops short of the last record
    assert set(told.log[:-1]) <= found
    rows = ask(isf, core, "linux.vmcoreinfo")
    assert {"OSRELEASE": told.release}.items() <= {row["Key"]: row["Value"] for row in rows}.items()
