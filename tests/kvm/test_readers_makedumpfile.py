"""makedumpfile opens our ELF files of an encrypted Linux without a flag: filters, compresses, prints the log."""

from __future__ import annotations

from pathlib import Path

import pytest

from sevkvm.dump import DumpFormat
from tests.support.readers.dumps import Cell, Dumps, cells
from tests.support.readers.programs import require_program, run

pytestmark = pytest.mark.kvm


@pytest.mark.parametrize("cell", cells(lambda levels, mode: mode != "alias" or levels == 5))
def test_the_kernel_log(reader_dumps: Dumps, cell: Cell, tmp_path: Path) -> None:
    makedumpfile = require_program("makedumpfile", "makedumpfile")
    run(makedumpfile, "--dump-dmesg", reader_dumps.dump(cell), tmp_path / "log")
    assert reader_dumps.told(cell).missing_log((tmp_path / "log").read_text()) == []


@pytest.mark.parametrize("cell", cells(lambda levels, mode: mode != "alias" or levels == 5))
def test_filter_and_compress(reader_dumps: Dumps, cell: Cell, tmp_path: Path) -> None:
    makedumpfile = require_program("makedumpfile", "makedumpfile")
    core = reader_dumps.dump(cell)
    said = run(makedumpfile, "-c", "-d", "31", core, tmp_path / "small")
    assert "Completed" in said
    # free pages are found through the kernel's own page tables: most of this guest is free
    assert 1 << 20 < (tmp_path / "small").stat().st_size < core.stat().st_size // 8
    run(makedumpfile, "--dump-dmesg", tmp_path / "small", tmp_path / "log")
    assert reader_dumps.told(cell).missing_log((tmp_path / "log").read_text()) == []


@pytest.mark.parametrize("mode", ["keep", "strip"])
@pytest.mark.parametrize("file_format", [DumpFormat.ELF, DumpFormat.KDUMP])
def test_a_guest_without_registers(
    reader_dumps: Dumps, file_format: DumpFormat, mode: str, tmp_path: Path
) -> None:
    makedumpfile = require_program("makedumpfile", "makedumpfile")
    cell = (4, 51, mode)
    run(makedumpfile, "--dump-dmesg", reader_dumps.dump(cell, file_format, es=True), tmp_path / "log")
    assert reader_dumps.told(cell).missing_log((tmp_path / "log").read_text()) == []
