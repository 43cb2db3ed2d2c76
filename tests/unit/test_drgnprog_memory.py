"""What drgn is served: the C-bit of an address decides, tables are private without it, nothing is older than told."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from sevkvm.drgnprog.memory import ProgramMemory
from sevkvm.memory.source import Slot, SlotMap
from sevkvm.paging.form import PagingForm, PagingMode

PAGE = 4096
CBIT = 1 << 51
ROOT, UPPER, SHARED_LEAF, DATA, HALF = 0x1000, 0x2000, 0x3000, 0x4000, 0x5000
RAM_NBYTES = 0x6000


class Fault(Exception):
    """In drgn's place."""


class Ram:
    """Six pages, each its number over and over; the top bit marks private reads. The last is half there."""

    encrypted = True
    reason = "there is a hole"

    def __init__(self) -> None:
        self.slots = SlotMap([Slot(0, RAM_NBYTES, 0x7F00_0000_0000)])
        self.reads: list[tuple[int, bool, int]] = []
        self.forgotten = 0
        self.turn = 0
        # a table that lacks the C-bit in the entry above it, and below it a leaf that lacks it, too
        self.tables = {ROOT: UPPER | 3, UPPER: SHARED_LEAF | 0x83}

    def readinto(self, gpa: int, private: bool, buffer: memoryview, ahead: int = 0) -> int:
        self.reads.append((gpa, private, len(buffer)))
        end = min(len(buffer), max(0, RAM_NBYTES - PAGE // 2 - gpa))
        if gpa in self.tables and private:
            page = struct.pack("<Q", self.tables[gpa]) + bytes(PAGE - 8)
        else:
            page = bytes([(gpa >> 12) + self.turn | private << 7]) * PAGE
        data = (page * (len(buffer) // PAGE + 1))[:end]
        buffer[: len(data)] = data
        return len(data)

    def invalidate(self) -> None:
        self.forgotten += 1


@pytest.fixture
def ram() -> Ram:
    return Ram()


def memory_of(ram: Any, max_age: float = 60) -> ProgramMemory:
    return ProgramMemory(ram, PagingForm(PagingMode.LEVEL4, ROOT, 51), Fault, max_age)


def read(memory: ProgramMemory, address: int, nbytes: int) -> bytes:
    return memory.read(address, nbytes, 0, True)


def test_the_c_bit_decides(ram: Ram) -> None:
    memory = memory_of(ram)
    assert read(memory, DATA + 5, 3) == b"\x04" * 3
    assert read(memory, DATA + 5 | CBIT, 3) == b"\x84" * 3
    assert [private for _, private, _ in ram.reads] == [False, True]


def test_pages_are_read_whole_and_once(ram: Ram) -> None:
    memory = memory_of(ram)
    memory.still = True
    for _ in range(3):
        assert read(memory, SHARED_LEAF + PAGE - 2 | CBIT, 4) == b"\x83\x83\x84\x84"
    assert ram.reads == [(SHARED_LEAF, True, PAGE), (DATA, True, PAGE)]


def test_tables_are_private_with_the_c_bit_and_without_and_decrypted_once(ram: Ram) -> None:
    memory = memory_of(ram)
    for address in (ROOT, ROOT | CBIT, UPPER, UPPER | CBIT):
        assert read(memory, address, 8) == struct.pack("<Q", ram.tables[address & ~CBIT])
    assert ram.reads == [(ROOT, True, PAGE), (UPPER, True, PAGE)]
    # what a table names as a leaf is none
    assert read(memory, SHARED_LEAF, 1) == b"\x03"


def test_a_table_that_nothing_has_named_yet_is_what_its_address_says(ram: Ram) -> None:
    assert read(memory_of(ram), UPPER, 1) == b"\x02"


def test_a_page_that_was_a_table_is_none_any_more_when_the_guest_has_run(ram: Ram) -> None:
    memory = memory_of(ram)
    read(memory, ROOT, 8)
    assert read(memory, UPPER, 8) == struct.pack("<Q", ram.tables[UPPER])
    ram.tables[ROOT] = 0
    memory.forget()
    read(memory, ROOT, 8)
    assert read(memory, UPPER, 1) == b"\x02"


@pytest.mark.parametrize("cbit", [0, CBIT])
def test_what_cannot_be_read_is_a_fault_that_names_the_first_byte(ram: Ram, cbit: int) -> None:
    memory = memory_of(ram)
    assert len(read(memory, HALF | cbit, PAGE // 2)) == PAGE // 2
    with pytest.raises(Fault) as caught:
        read(memory, HALF + 100 | cbit, PAGE // 2)
    assert caught.value.args == ("there is a hole", HALF + PAGE // 2 | cbit)
    with pytest.raises(Fault) as caught:
        read(memory, RAM_NBYTES + 8 | cbit, 8)
    assert caught.value.args == ("not guest RAM", RAM_NBYTES + 8 | cbit)


def test_nothing_is_remembered_for_longer_than_told(ram: Ram) -> None:
    memory = memory_of(ram, max_age=0.05)
    assert read(memory, DATA, 1) == b"\x04"
    ram.turn, began = 1, time.monotonic()
    while read(memory, DATA, 1) == b"\x04":
        assert time.monotonic() - began < 10
    assert ram.forgotten == 1


def test_an_age_of_nothing_remembers_nothing(ram: Ram) -> None:
    memory = memory_of(ram, max_age=0)
    for turn in range(5):
        ram.turn = turn
        assert read(memory, DATA, 1) == bytes([4 + turn])


def test_running_on_forgets(ram: Ram) -> None:
    memory = memory_of(ram)
    memory.still = True
    assert read(memory, DATA, 1) == b"\x04"
    ram.turn = 1
    assert read(memory, DATA, 1) == b"\x04"
    memory.still = False
    assert read(memory, DATA, 1) == b"\x05"


def test_a_long_read_is_passed_through(ram: Ram) -> None:
    ram.slots = SlotMap([Slot(0, 0x100000, 0x7F00_0000_0000)])
    with pytest.raises(Fault):
        read(memory_of(ram), 0, 0x20000)
    assert ram.reads == [(0, False, 0x20000)]


def test_what_is_to_be_done_soon_waits_for_the_read_that_is_under_way(ram: Ram) -> None:
    memory = memory_of(ram)
    done: list[str] = []
    memory.soon(lambda: done.append("at once"))
    with memory.working():
        with memory.working():
            memory.soon(lambda: done.append("later"))
        assert done == ["at once"]
    assert done == ["at once", "later"]


class HeldGuest:
    """As much of a guest as a hold asks for."""

    pid = 1

    def __init__(self) -> None:
        self.stands = False

    @contextmanager
    def held(self) -> Iterator[None]:
        self.stands = True
        try:
            yield
        finally:
            self.stands = False


def test_a_hold_ends_by_itself_and_says_so(ram: Ram, capsys: pytest.CaptureFixture[str]) -> None:
    from sevkvm.cli.drgn_hold import BoundedHold

    guest: Any = HeldGuest()
    memory = memory_of(ram)
    with BoundedHold(guest, memory, 0.05):
        assert guest.stands
        assert memory.still
        deadline = time.monotonic() + 20
        while guest.stands and time.monotonic() < deadline:
            pass
        assert (guest.stands, memory.still) == (False, False)
    assert "it runs on" in capsys.readouterr().err


def test_a_hold_that_is_left_in_time_says_nothing(ram: Ram, capsys: pytest.CaptureFixture[str]) -> None:
    from sevkvm.cli.drgn_hold import BoundedHold

    guest: Any = HeldGuest()
    memory = memory_of(ram)
    with BoundedHold(guest, memory, 60):
        assert guest.stands
    assert (guest.stands, memory.still) == (False, False)
    with BoundedHold(guest, memory, None):
        assert not guest.stands
    assert capsys.readouterr().err == ""
