"""RAM guessed from the mappings: right, or refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from sevkvm import errors
from sevkvm.host import ramguess, slots
from sevkvm.host.procfs import Mapping
from sevkvm.host.qemuargs import QemuArgs
from sevkvm.host.ramguess import Piece
from sevkvm.host.slots import RawSlot
from tests.support.fakeproc import FakeProc

MIB, GIB = 1 << 20, 1 << 30
HIGH = 4 * GIB
BASE = 0x7F0000000000


@pytest.mark.parametrize(
    ("machine", "ram", "low"),
    [
        ("q35", 512 * MIB, 512 * MIB),
        ("q35", 2816 * MIB - MIB, 2816 * MIB - MIB),
        ("q35", 2816 * MIB, 2 * GIB),
        ("pc-q35-9.1", 64 * GIB, 2 * GIB),
        ("pc", 3584 * MIB - MIB, 3584 * MIB - MIB),
        ("pc", 3584 * MIB, 3 * GIB),
        ("pc-i440fx-7.2", 5 * GIB, 3 * GIB),
    ],
)
def test_layout(machine: str, ram: int, low: int) -> None:
    high = [Piece(HIGH, ram - low, low)] if ram > low else []
    assert ramguess.layout(QemuArgs(machine=machine, ram_nbytes=ram)) == [Piece(0, low, 0), *high]


@pytest.mark.parametrize(
    "args",
    [
        QemuArgs(),
        QemuArgs(machine="q35"),
        QemuArgs(ram_nbytes=GIB),
        QemuArgs(machine="microvm", ram_nbytes=GIB),
        QemuArgs(machine="pc-i440fx-2.0", ram_nbytes=GIB),
        QemuArgs(machine="q35", ram_nbytes=GIB, machine_options={"max-ram-below-4g": "1G"}),
        QemuArgs(machine="q35", ram_nbytes=GIB + 5),
        QemuArgs(machine="q35", ram_nbytes=1024 * GIB),
        QemuArgs(machine="q35", ram_nbytes=0),
    ],
)
def test_layouts_that_are_not_certain(args: QemuArgs) -> None:
    with pytest.raises(errors.VmNotFound) as caught:
        ramguess.layout(args)
    assert caught.value.help is not None
    assert "--slot" in caught.value.help
    assert "--qmp" in caught.value.help


def anon(start: int, nbytes: int, perms: str = "rw-p", path: str = "") -> Mapping:
    return Mapping(start, start + nbytes, perms, 0, "00:00", 0, path)


def memfd(start: int, nbytes: int, offset: int = 0, inode: int = 9) -> Mapping:
    return Mapping(start, start + nbytes, "rw-s", offset, "00:01", inode, "/memfd:ram (deleted)")


OTHERS = [
    anon(0x1000, 8 * MIB),
    anon(BASE - 64 * MIB, 64 * MIB, path="[heap]"),
    memfd(0x10000000, MIB, inode=8),
]


@pytest.mark.parametrize(
    "block",
    [
        [anon(BASE, 64 * MIB)],
        [anon(BASE, 16 * MIB), anon(BASE + 16 * MIB, 48 * MIB)],
        [anon(BASE, 64 * MIB), anon(BASE + 64 * MIB, 4096, "---p")],
        [anon(BASE - 2 * MIB, 66 * MIB), anon(BASE + 64 * MIB, 4096, "---p")],
        [anon(BASE - 2 * MIB, 2 * MIB), anon(BASE, 64 * MIB), anon(BASE + 64 * MIB, MIB)],
        [memfd(BASE, 64 * MIB)],
        [memfd(BASE, 64 * MIB), anon(BASE + 64 * MIB, MIB)],
        [memfd(BASE, 2 * MIB), memfd(BASE + 2 * MIB, 62 * MIB, 2 * MIB)],
        [memfd(BASE - MIB, MIB, inode=7), memfd(BASE, 64 * MIB)],
    ],
)
def test_one_block(block: list[Mapping]) -> None:
    assert ramguess.find_ram([*OTHERS, *block], 64 * MIB) == BASE


@pytest.mark.parametrize(
    ("block", "count"),
    [
        ([], "no"),
        ([anon(BASE, 63 * MIB)], "no"),
        ([anon(BASE, 64 * MIB, "r--p")], "no"),
        ([anon(BASE, 66 * MIB)], "no"),
        ([memfd(BASE, 64 * MIB, 4096)], "no"),
        ([memfd(BASE, 32 * MIB), memfd(BASE + 32 * MIB, 32 * MIB, 16 * MIB)], "no"),
        ([anon(BASE, 64 * MIB), anon(BASE + GIB, 64 * MIB)], "2"),
        ([anon(BASE, 64 * MIB), memfd(BASE + GIB, 64 * MIB)], "2"),
        ([anon(BASE, MIB), anon(BASE + MIB, 63 * MIB), anon(BASE + 64 * MIB, MIB)], "2"),
    ],
)
def test_none_or_several(block: list[Mapping], count: str) -> None:
    with pytest.raises(errors.VmNotFound, match=f"{count} mappings look like 0x4000000 bytes"):
        ramguess.find_ram([*OTHERS, *block], 64 * MIB)


def test_slots_from_maps(tmp_path: Path) -> None:
    nbytes = 5 * GIB
    maps = f"{BASE:x}-{BASE + nbytes:x} rw-p 00000000 00:00 0 \n"
    FakeProc(tmp_path).process(7, argv=["qemu-system-x86_64", "-M", "q35", "-m", "5G,maxmem=8G"], maps=maps)
    guess = slots.from_maps(7, tmp_path)
    assert guess.slots == (
        RawSlot(0, 2 * GIB, BASE, "ram?"),
        RawSlot(HIGH, 3 * GIB, BASE + 2 * GIB, "ram?"),
    )
    assert "guessed" in guess.warning
    assert "DIMM" in guess.warning


def test_other_vmms_are_not_guessed_at(tmp_path: Path) -> None:
    maps = f"{BASE:x}-{BASE + GIB:x} rw-p 00000000 00:00 0 \n"
    FakeProc(tmp_path).process(7, argv=["firecracker", "-m", "1G"], maps=maps)
    with pytest.raises(errors.VmNotFound, match="without help"):
        slots.from_maps(7, tmp_path)
