"""GPA -> HVA from the user and from a monitor of canned answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from sevkvm import errors
from sevkvm.host import slots
from sevkvm.host.slots import RawSlot
from tests.support.fakeproc import FakeProc

RAM = 0x7F0000000000
ROM = 0x7F00C0000000
MAPS = f"""\
{RAM:x}-{RAM + 0x80000:x} rw-p 00000000 00:00 0 \n\
{RAM + 0x80000:x}-{RAM + 0x400000:x} rw-p 00000000 00:00 0 \n\
{RAM + 0x400000:x}-{RAM + 0x401000:x} ---p 00000000 00:00 0 \n\
{ROM:x}-{ROM + 0x20000:x} r--p 00000000 00:00 0 \n"""
MTREE = """\
FlatView #0
 AS "memory", root: system
 Root memory region: system
  0000000000000000-000000000007ffff (prio 0, ram): pc.ram KVM
  0000000000080000-00000000000bffff (prio 0, ram): pc.ram @0000000000080000 KVM
  00000000000c0000-00000000000dffff (prio 1, rom): pc.rom KVM
  0000000000100000-00000000003fffff (prio 0, ram): pc.ram @0000000000100000 KVM
"""


class Canned:
    """A monitor that knows blocks: (gpa, nbytes, name, hva). ``lies`` are answers by command, used up in order."""

    def __init__(self, mtree: str = MTREE) -> None:
        self.mtree = mtree
        self.blocks = [(0, 0xC0000, "pc.ram", RAM), (0xC0000, 0x20000, "pc.rom", ROM)]
        self.blocks.append((0x100000, 0x300000, "pc.ram", RAM + 0x100000))
        self.lies: dict[str, list[str]] = {}
        self.asked: list[str] = []

    def hmp(self, command: str) -> str:
        self.asked.append(command)
        if self.lies.get(command):
            return self.lies[command].pop(0)
        if command == "info mtree -f":
            return self.mtree
        gpa = int(command.removeprefix("gpa2hva "), 16)
        for start, nbytes, name, hva in self.blocks:
            if start <= gpa < start + nbytes:
                return f"Host virtual address for 0x{gpa:x} ({name}) is 0x{hva + gpa - start:x}\n"
        return f"No memory is mapped at address 0x{gpa:x}\n"


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    FakeProc(tmp_path).process(7, maps=MAPS)
    return tmp_path


def test_slots_from_a_monitor(proc: Path) -> None:
    monitor = Canned()
    assert slots.from_monitor(monitor, 7, proc) == [
        RawSlot(0, 0xC0000, RAM, "pc.ram"),
        RawSlot(0xC0000, 0x20000, ROM, "pc.rom", readonly=True),
        RawSlot(0x100000, 0x300000, RAM + 0x100000, "pc.ram"),
    ]
    assert "gpa2hva 0x3ff000" in monitor.asked  # the end of what is large is verified


def test_one_contradiction_is_asked_again(proc: Path) -> None:
    """A guest that runs may rearrange its memory between two questions."""
    monitor = Canned()
    monitor.lies["gpa2hva 0xc0000"] = [f"Host virtual address for 0xc0000 (pc.ram) is {RAM + 0xC0000:#x}\n"]
    assert len(slots.from_monitor(monitor, 7, proc)) == 3
    assert monitor.asked.count("info mtree -f") == 2


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        ("gpa2hva 0x0", "No memory is mapped at address 0x0\n"),
        ("gpa2hva 0x0", f"Host virtual address for 0x1000 (pc.ram) is {RAM:#x}\n"),
        ("gpa2hva 0x0", f"Host virtual address for 0x0 (other) is {RAM:#x}\n"),
        ("gpa2hva 0x0", f"Host virtual address for 0x0 (pc.ram) is {RAM + 1:#x}\n"),
        ("gpa2hva 0x0", "Host virtual address for 0x0 (pc.ram) is (nil)\n"),
        ("gpa2hva 0x0", "x" * (1 << 20)),
        ("gpa2hva 0x3ff000", f"Host virtual address for 0x3ff000 (pc.ram) is {RAM:#x}\n"),
    ],
)
def test_answers_that_make_no_sense(proc: Path, command: str, answer: str) -> None:
    monitor = Canned()
    monitor.lies[command] = [answer] * 3
    with pytest.raises(errors.ProtocolError) as caught:
        slots.from_monitor(monitor, 7, proc)
    assert len(str(caught.value)) < 400
    assert monitor.lies[command] == []


def test_a_monitor_that_knows_no_mtree(proc: Path) -> None:
    with pytest.raises(errors.ProtocolError, match="0 views"):
        slots.from_monitor(Canned("unknown command: 'info mtree'\n"), 7, proc)


@pytest.mark.parametrize("start", [0, 0x1000, ROM - 0x1000, ROM + 0x1000, RAM + 0x401000, 1 << 63])
def test_memory_that_the_process_does_not_have(proc: Path, start: int) -> None:
    monitor = Canned()
    monitor.blocks[1] = (0xC0000, 0x20000, "pc.rom", start)
    with pytest.raises(errors.ProtocolError, match=r"gpa 0xc0000 \(pc\.rom\)") as caught:
        slots.from_monitor(monitor, 7, proc)
    assert caught.value.help is not None
    assert "process 7" in caught.value.help


def test_memory_that_reaches_into_a_guard_page(proc: Path) -> None:
    monitor = Canned()
    monitor.blocks[2] = (0x100000, 0x300000, "pc.ram", RAM + 0x101000)
    with pytest.raises(errors.ProtocolError, match="gpa 0x100000"):
        slots.from_monitor(monitor, 7, proc)


def test_two_regions_of_one_name_are_kept_apart(proc: Path) -> None:
    text = MTREE.replace("pc.rom", "pc.ram")
    monitor = Canned(text)
    monitor.blocks[1] = (0xC0000, 0x20000, "pc.ram", ROM)
    assert [slot.hva for slot in slots.from_monitor(monitor, 7, proc)] == [RAM, ROM, RAM + 0x100000]


@pytest.mark.parametrize(
    ("text", "slot"),
    [
        ("0:4096:8192", RawSlot(0, 4096, 8192, "slot")),
        ("0x100000000:2G:0x7f0000000000", RawSlot(1 << 32, 2 << 30, 0x7F0000000000, "slot")),
        ("0x0:64m:0x7F0000000000", RawSlot(0, 64 << 20, 0x7F0000000000, "slot")),
        ("0x0:0x4K:0x1000", RawSlot(0, 4096, 4096, "slot")),
        ("0:1GiB:0x1000", RawSlot(0, 1 << 30, 4096, "slot")),
        ("00:008K:0x0001000", RawSlot(0, 8192, 4096, "slot")),
        ("0xffff0000:64K:0x1000:ro", RawSlot(0xFFFF0000, 64 << 10, 4096, "slot", readonly=True)),
    ],
)
def test_parse_slot(text: str, slot: RawSlot) -> None:
    assert slots.parse_slot(text) == slot


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0:4096",
        "0:4096:4096:0",
        "0:4096:4096:rw",
        ":::",
        "0:0:4096",
        "1:4096:4096",
        "0:4095:4096",
        "0:4096:1",
        "-4096:4096:4096",
        "0:1Q:4096",
        "0:1.5G:4096",
        "7f000000:4096:4096g",
        "0xfffffffff0000:64K:0x1000".replace("64K", "128K"),
        "0:4096:0xfffffffffffff000",
        "0:99999999999999999999T:4096",
        "0 :4096:4096",
        "\u0660:4096:4096",
        "0:1_0K:4096",
    ],
)
def test_slots_that_are_none(text: str) -> None:
    with pytest.raises(errors.UsageError) as caught:
        slots.parse_slot(text)
    assert caught.value.help is not None
    assert "GPA:SIZE:HVA" in caught.value.help


def test_the_users_slots_must_be_memory_of_the_process(proc: Path) -> None:
    good = f"0:4M:{RAM:#x}"
    assert slots.from_user([f"16M:4K:{ROM:#x}".replace("16M", "0x1000000"), good], 7, proc) == [
        RawSlot(0, 4 << 20, RAM, "slot"),
        RawSlot(16 << 20, 4096, ROM, "slot"),
    ]
    with pytest.raises(errors.UsageError, match="process 7 has no 0x401000 readable bytes") as caught:
        slots.from_user([f"0:0x401000:{RAM:#x}"], 7, proc)
    assert caught.value.help is not None
    assert "/proc/7/maps" in caught.value.help


def test_neighbours_become_one_only_if_they_are_one() -> None:
    parts = [
        RawSlot(0x1000, 0x1000, 0x11000, "a"),
        RawSlot(0, 0x1000, 0x10000, "a"),
        RawSlot(0x2000, 0x1000, 0x12000, "b"),
        RawSlot(0x3000, 0x1000, 0x14000, "b"),
        RawSlot(0x4000, 0x1000, 0x15000, "b", readonly=True),
        RawSlot(0x6000, 0x1000, 0x16000, "b", readonly=True),
    ]
    assert slots.merged(parts) == [RawSlot(0, 0x2000, 0x10000, "a"), *parts[2:]]
