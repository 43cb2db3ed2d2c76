"""Dumps of the lab's Linux for readers to open, made once a test run: each kind of guest, each way with the C-bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sevkvm.dump import CbitMode, DumpFormat, DumpOptions, DumpResult, dump_guest, prepare
from sevkvm.lab.emulator import Machine
from sevkvm.lab.sealed import SealedLinux
from tests.support.fakeguest import UniformPages
from tests.support.linux import require_sealed_linux
from tests.support.readers.programs import ReaderFailed
from tests.support.readers.sealedguest import SealedGuest
from tests.support.readers.told import Told, told_by

LEVELS = {4: Machine(), 5: Machine(cpus=2, la57=True)}
MODES = ("keep", "strip", "alias")
Cell = tuple[int, int, str]  # levels of page tables, C-bit, mode
GUESTS = tuple((levels, cbit_pos) for levels in LEVELS for cbit_pos in (47, 51))
CELLS = tuple((*guest, mode) for guest in GUESTS for mode in MODES)


def cells(opens: Callable[[int, str], bool], fails: type[Exception] = ReaderFailed) -> list[Any]:
    """All cells of the table as test parameters; ``opens`` tells by level and mode what the reader can open.

    The others are expected to fail, in that way. docs/dump.md shows the table; a reader that has learned something
    makes such a test an unexpected pass.
    """
    return [
        pytest.param(
            cell,
            id=f"{cell[0]}-level-c{cell[1]}-{cell[2]}",
            marks=[] if opens(cell[0], cell[2]) else pytest.mark.xfail(raises=fails, strict=False),
        )
        for cell in CELLS
    ]


def sealed(levels: int, cbit_pos: int) -> SealedLinux:
    """The guest of a cell."""
    return require_sealed_linux(LEVELS[levels], cbit_pos=cbit_pos)


class Dumps:
    """Makes each dump when it is first asked for."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._made: dict[Path, DumpResult] = {}

    def dump(
        self,
        cell: Cell,
        file_format: DumpFormat = DumpFormat.ELF,
        *,
        es: bool = False,
        virtual: bool = False,
        live: bool = False,
    ) -> Path:
        """The file of a cell; ``es``: of a guest whose registers are encrypted; ``virtual``: by gva, too.

        live: with the mark of a guest that ran meanwhile.
        """
        levels, cbit_pos, mode = cell
        path = (
            self._directory
            / f"{levels}-{cbit_pos}-{mode}-{'es' if es else 'sev'}{'-v' * virtual}{'-live' * live}.{file_format.value}"
        )
        if path not in self._made:
            options = DumpOptions(file_format, cbit=CbitMode(mode), virtual=virtual, live=live)
            guest = SealedGuest(sealed(levels, cbit_pos), es=es)
            self._made[path] = dump_guest(guest, options, UniformPages(True), prepare(str(path)))
        return path

    def result(self, cell: Cell) -> DumpResult:
        """What came of it."""
        return self._made[self.dump(cell)]

    def told(self, cell: Cell) -> Told:
        """What its guest printed."""
        return told_by(sealed(*cell[:2]))
