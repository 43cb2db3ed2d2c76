"""Table pages without the C-bit: exactly these, exactly their present entries, however the memory is read."""

from __future__ import annotations

import random
import struct
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sevkvm.dump.strip import StrippedMemory, strip, with_sme_mask
from tests.support.fakeguest import PAGE, FakeGuest

TABLES = (0x2000, 0x3000, 0x7000)
RAM_NBYTES = 10 * PAGE


def table(seed: int) -> list[int]:
    """Entries present and not, with and without a bit at 47 and 51."""
    chance = random.Random(seed)
    return [chance.getrandbits(64) for _ in range(512)]


def expected(entries: list[int], cbit_pos: int) -> bytes:
    return struct.pack("<512Q", *(e & ~(1 << cbit_pos) if e & 1 else e for e in entries))


def guest() -> tuple[FakeGuest, bytes, bytes]:
    """It, its memory and what its memory is without C-bit 51. Every page would do for a table."""
    entries = [table(gpa) for gpa in range(0, RAM_NBYTES, PAGE)]
    ram = b"".join(struct.pack("<512Q", *page) for page in entries)
    wanted = b"".join(
        expected(page, 51) if gpa in TABLES else struct.pack("<512Q", *page)
        for gpa, page in zip(range(0, RAM_NBYTES, PAGE), entries, strict=True)
    )
    return FakeGuest({0: ram}), ram, wanted


class Tabled:
    """The guest's memory, and its pages as tables."""

    def __init__(self, fake: FakeGuest, ram: bytes, unreadable: frozenset[int] = frozenset()) -> None:
        self.chunk_nbytes = fake.memory.chunk_nbytes
        self.readinto = fake.memory.readinto
        self._ram, self._unreadable = ram, unreadable

    def read(self, gpa: int, nbytes: int, private: bool = True) -> bytes:
        return self._ram[gpa : gpa + nbytes]

    def read_tables(self, gpas, *, keep: bool = True):
        return [None if gpa in self._unreadable else self._ram[gpa : gpa + PAGE] for gpa in gpas]


@pytest.mark.parametrize("cbit_pos", [32, 47, 51])
def test_only_present_entries_change_and_only_by_the_c_bit(cbit_pos: int) -> None:
    entries = table(1)
    assert strip(struct.pack("<512Q", *entries), cbit_pos) == expected(entries, cbit_pos)
    assert any(entry & 1 and entry >> cbit_pos & 1 for entry in entries)
    assert any(not entry & 1 and entry >> cbit_pos & 1 for entry in entries)


@given(st.integers(0, RAM_NBYTES - 1), st.integers(1, RAM_NBYTES))
def test_any_read_is_part_of_the_same_answer(gpa: int, nbytes: int) -> None:
    fake, ram, wanted = guest()
    memory = StrippedMemory(Tabled(fake, ram), array("Q", TABLES), 51)
    buffer = bytearray(nbytes)
    got = memory.readinto(gpa, False, memoryview(buffer))
    assert got == min(nbytes, RAM_NBYTES - gpa)
    assert buffer[:got] == wanted[gpa : gpa + got]
    assert not any(buffer[got:])


def test_a_short_read_is_stripped_as_far_as_it_goes() -> None:
    fake, ram, wanted = guest()
    fake.memory.bad_pages = {0x3000}
    memory = StrippedMemory(Tabled(fake, ram), array("Q", TABLES), 51)
    buffer = bytearray(RAM_NBYTES)
    assert memory.readinto(0, False, memoryview(buffer)) == 0x3000
    assert buffer[:0x3000] == wanted[:0x3000]


def test_who_walks_gets_the_tables_as_they_are() -> None:
    fake, ram, _ = guest()
    memory = StrippedMemory(Tabled(fake, ram), array("Q", TABLES), 51)
    assert memory.read_tables([0x2000]) == [ram[0x2000:0x3000]]
    assert memory.read(0x2000, 16) == ram[0x2000:0x2010]


def test_the_note_says_that_there_is_no_c_bit() -> None:
    text = b"OSRELEASE=6.1\nNUMBER(sme_mask)=2251799813685248\nKERNELOFFSET=0\n"
    assert with_sme_mask(text, 0) == b"OSRELEASE=6.1\nNUMBER(sme_mask)=0\nKERNELOFFSET=0\n"
    assert with_sme_mask(b"OSRELEASE=4.12\n", 0) == b"OSRELEASE=4.12\nNUMBER(sme_mask)=0\n"
