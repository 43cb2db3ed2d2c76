"""GuestMemory over sources made here: which source serves a page, what is cached, where a read stops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from sevkvm import errors
from sevkvm.memory.guest import GuestMemory
from sevkvm.memory.sevdbg import DecryptCounters, pages_touched
from sevkvm.memory.source import Slot, SlotMap

PAGE = 4096
SLOTS = SlotMap([Slot(0, 64 * PAGE, 0x10000000), Slot(128 * PAGE, 512 * PAGE, 0x20000000)])


@dataclass
class Source:
    """Bytes that name their page; pages in ``bad`` cannot be read. Counts like the decrypting source."""

    tag: int
    bad: set[int] = field(default_factory=set)
    counters: DecryptCounters = field(default_factory=DecryptCounters)
    reason: str = "made bad by the test"
    bytes_copied: int = 0
    reads: list[tuple[int, int]] = field(default_factory=list)

    def byte(self, gpa: int) -> int:
        return (self.tag + (gpa >> 12) * 7 + gpa) & 0xFF

    chunk_nbytes = 1 << 20

    def settle(self) -> None:
        pass

    def readinto(self, gpa: int, hva: int, buffer: memoryview, ahead: int = 0) -> int:
        assert SLOTS.hva(gpa) == hva
        self.reads.append((gpa, len(buffer)))
        nbytes = len(buffer)
        for page in sorted(self.bad):
            if gpa >> 12 <= page <= (gpa + nbytes - 1) >> 12:
                nbytes = max(0, page * PAGE - gpa)
        for offset in range(nbytes):
            buffer[offset] = self.byte(gpa + offset)
        self.counters.ioctls += 1
        self.counters.commands += pages_touched(gpa, nbytes)
        return nbytes

    def read_pages(self, hvas: Sequence[int]) -> list[bytes | None]:
        gpas = [
            slot.gpa + hva - slot.hva for hva in hvas for slot in SLOTS if 0 <= hva - slot.hva < slot.nbytes
        ]
        assert len(gpas) == len(hvas)
        self.reads += [(gpa, PAGE) for gpa in gpas]
        return [None if gpa >> 12 in self.bad else self.expected(gpa, PAGE) for gpa in gpas]

    def expected(self, gpa: int, nbytes: int) -> bytes:
        return bytes(self.byte(gpa + offset) for offset in range(nbytes))


@pytest.fixture
def shared() -> Source:
    return Source(0x00)


@pytest.fixture
def private() -> Source:
    return Source(0x80)


@pytest.fixture
def memory(shared: Source, private: Source) -> GuestMemory:
    return GuestMemory(SLOTS, shared, private)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("address", "nbytes", "pages"), [(0, 0, 0), (0, 1, 1), (4095, 2, 2), (0, 8192, 2), (1, 8192, 3)]
)
def test_pages_touched(address: int, nbytes: int, pages: int) -> None:
    assert pages_touched(address, nbytes) == pages


def test_the_address_says_which_source(memory: GuestMemory, shared: Source, private: Source) -> None:
    assert memory.read(0x1234, 100, private=True) == private.expected(0x1234, 100)
    assert memory.read(0x1234, 100, private=False) == shared.expected(0x1234, 100)


def test_a_plain_guest_has_only_shared_bytes(shared: Source) -> None:
    memory = GuestMemory(SLOTS, shared, None)  # type: ignore[arg-type]
    assert not memory.encrypted
    assert memory.read(0x1234, 100, private=True) == shared.expected(0x1234, 100)
    assert memory.counts()["firmware_commands"] == 0


def test_each_page_is_decrypted_once(memory: GuestMemory) -> None:
    for gpa in range(0x1000, 0x2000, 64):
        memory.read(gpa, 64)
    assert memory.counts()["firmware_commands"] == 1
    memory.read(0x1FF0, 32)
    assert memory.counts()["firmware_commands"] == 2
    memory.invalidate()
    memory.read(0x1000, 8)
    assert memory.counts()["firmware_commands"] == 3


def test_tables_are_fetched_in_runs_and_counted_apart(memory: GuestMemory, private: Source) -> None:
    pages = memory.read_tables([0x5000, 0x3000, 0x4000, 0x9000, 0x3000])
    assert pages == [private.expected(gpa, PAGE) for gpa in (0x5000, 0x3000, 0x4000, 0x9000, 0x3000)]
    assert private.reads == [(0x3000, 3 * PAGE), (0x9000, PAGE)]
    counts = memory.counts()
    assert (counts["table_commands"], counts["data_commands"]) == (4, 0)
    memory.read_tables([0x4000])
    memory.read(0x4000, 16)
    assert memory.counts()["firmware_commands"] == 4


def test_tables_of_a_plain_guest_are_copied_together(shared: Source) -> None:
    memory = GuestMemory(SLOTS, shared, None)
    shared.bad = {4}
    gpas = [0x5000, 0x4000, 100 * PAGE, 0x3000, 130 * PAGE, 0x3000]
    expected = [None if gpa in gpas[1:3] else shared.expected(gpa, PAGE) for gpa in gpas]
    assert memory.read_tables(gpas) == expected
    assert len(shared.reads) == 4
    assert memory.read_tables([0x3000, 0x5000]) == [expected[3], expected[0]]
    assert len(shared.reads) == 4
    assert memory.counts()["firmware_commands"] == 0


def test_a_table_outside_ram_or_unreadable_is_none(memory: GuestMemory, private: Source) -> None:
    private.bad = {4}
    assert memory.read_tables([0x3000, 0x4000, 0x5000, 100 * PAGE]) == [
        private.expected(0x3000, PAGE),
        None,
        private.expected(0x5000, PAGE),
        None,
    ]


@pytest.mark.parametrize("nbytes", [32 * PAGE, 200 * PAGE])
def test_a_read_stops_at_the_first_bad_byte(memory: GuestMemory, private: Source, nbytes: int) -> None:
    private.bad = {128 + 20}
    buffer = bytearray(nbytes)
    start = 128 * PAGE + 0x10
    assert memory.readinto(start, True, memoryview(buffer)) == 20 * PAGE - 0x10
    assert buffer[: 20 * PAGE - 0x10] == private.expected(start, 20 * PAGE - 0x10)
    with pytest.raises(errors.MemoryFault) as caught:
        memory.read(start, nbytes)
    assert caught.value.address == (128 + 20) * PAGE
    assert caught.value.space == "gpa"


def test_a_hole_between_slots_is_no_ram(memory: GuestMemory) -> None:
    with pytest.raises(errors.MemoryFault, match="not guest RAM") as caught:
        memory.read(63 * PAGE, 2 * PAGE)
    assert caught.value.address == 64 * PAGE


def test_a_bulk_read_takes_cached_pages_from_the_cache(memory: GuestMemory, private: Source) -> None:
    memory.read_tables([130 * PAGE, 131 * PAGE, 140 * PAGE])
    private.reads.clear()
    start, nbytes = 128 * PAGE, 100 * PAGE
    assert memory.read(start, nbytes) == private.expected(start, nbytes)
    assert private.reads == [
        (128 * PAGE, 2 * PAGE),
        (132 * PAGE, 8 * PAGE),
        (141 * PAGE, 87 * PAGE),
    ]
    # a dump of N pages costs N commands in all, tables included
    assert memory.counts()["firmware_commands"] == 100
    assert memory.counts()["table_commands"] == 3
