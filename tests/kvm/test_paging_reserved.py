"""Reserved bits, judged by an emulated processor that reads through the tables: it faults where we say it does.

QEMU's monitor does not look at them, its processor does.
"""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from sevkvm.paging.form import PagingForm
from sevkvm.paging.mode import OPTION_NAMES, PagingMode
from sevkvm.paging.translation import NOT_PRESENT, RESERVED_BIT, TABLE_UNREADABLE
from sevkvm.paging.walk import translate
from tests.support.bootprogram import BootProgram
from tests.support.emulated import Mode, emulated
from tests.support.refwalk import LAYOUTS, PS, RW, US, P, root_of

pytestmark = pytest.mark.kvm

PROBES = 250
PATH_GPA = 0x2_0000  # of one table a level below the program's top table
PHYS_BITS = 40  # of QEMU's emulation, which has no other width
EFER_NXE = 1 << 11
# Error codes: RSVD alone (a processor sets P with it, QEMU 7.2 does not).
FAULTS = {None: None, NOT_PRESENT: 0, TABLE_UNREADABLE: 0, RESERVED_BIT: 8}


def random_path(rng: random.Random, mode: Mode) -> tuple[int, list[tuple[int, int]]]:
    """A gva and, for each level, (gpa of the entry relative to its table, entry): sound but for a bit or two."""
    entry_nbytes, levels = LAYOUTS[mode]
    gva, entries = 0, []
    for depth, level in enumerate(levels):
        # the program lives under the first entry of its top table, and uses the last
        index = rng.randrange(1, min(level.nentries, 64) - 1) if depth == 0 else rng.randrange(level.nentries)
        gva |= index << level.shift
        entry = PATH_GPA + depth * 4096 | P
        if level.large and rng.random() < 0.4:
            entry = rng.randrange(1 << PHYS_BITS - level.shift) << level.shift & 0xFFFF_FFFF | PS | P
        if mode != "pae" or depth > 0:
            entry |= rng.choice([0, RW, RW | US])
        for _ in range(rng.choice([0, 0, 1, 2])):
            entry ^= 1 << rng.choice(flippable(mode, depth))
        entries.append((index * entry_nbytes, entry))
    return gva, entries


def flippable(mode: Mode, depth: int) -> list[int]:
    """All bits, but those that QEMU does not check in PAE's top table (8:5 and 2:1, which it even sets)."""
    if mode == "pae" and depth == 0:
        return [0, *range(9, 64)]
    # of a 4 MiB page one bit is reserved: try it often
    return [*range(LAYOUTS[mode].entry_nbytes * 8), *([21] * 16 if mode == "pse" and depth == 0 else [])]


@pytest.mark.parametrize("nx", [True, False], ids=["nx", "no-nx"])
@pytest.mark.parametrize(
    ("paging", "mode"), [("32", "32"), ("PSE", "pse"), ("PAE", "pae"), ("4LEVEL", "4level")]
)
def test_a_processor_faults_where_we_say_it_does(tmp_path: Path, paging: str, mode: Mode, nx: bool) -> None:
    rng = random.Random(f"{paging} {nx}")
    entry_nbytes, levels = LAYOUTS[mode]
    seen: Counter[str | None] = Counter()
    with emulated() as machine:
        booted = BootProgram(machine, paging, tmp_path)
        efer = machine.stub.get("efer")
        machine.stub.set("efer", efer | EFER_NXE if nx else efer & ~EFER_NXE)
        root = root_of(mode, booted.cr3)
        form = PagingForm(PagingMode(OPTION_NAMES.index(mode)), root, nx=nx, phys_bits=PHYS_BITS)
        for _ in range(PROBES):
            gva, entries = random_path(rng, mode)
            tables = [root, *range(PATH_GPA, PATH_GPA + 4096 * (len(levels) - 1), 4096)]
            for table, (offset, entry) in zip(tables, entries, strict=True):
                machine.ram[table + offset : table + offset + entry_nbytes] = entry.to_bytes(
                    entry_nbytes, "little"
                )
            found = translate(machine.reader(), form, gva)
            assert booted.probe(gva) == FAULTS[found.fault], (hex(gva), found)
            seen[found.fault] += 1
            for table, (offset, _) in zip(tables, entries, strict=True):
                machine.ram[table + offset : table + offset + entry_nbytes] = bytes(entry_nbytes)
    assert seen[None] > 20
    assert seen[NOT_PRESENT] > 5
    assert seen[RESERVED_BIT] > 5 if mode != "32" else not seen[RESERVED_BIT]
