"""Writes that are refused before anything changes, that go wrong in the middle, and what is remembered of the pages."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sevkvm import errors
from sevkvm.abi import sev
from sevkvm.memory.file import FileMemory
from sevkvm.memory.source import Slot, SlotMap, Span
from sevkvm.memory.write import MemoryWriter
from sevkvm.shim.faults import Faults, parse_fault
from tests.support.written import (
    BASE,
    HIGH,
    HOLE_GVA,
    MMIO,
    MMIO_GVA,
    PAGE,
    PLACES,
    ROM,
    ROM_GVA,
    SHARED,
    SmallGuest,
    gpa_of,
)

SHARED_GVA = BASE + PLACES.index(SHARED) * PAGE


@pytest.fixture
def small() -> SmallGuest:
    return SmallGuest()


def test_a_kernel_that_is_asked_carelessly_leaves_a_note() -> None:
    """What the property tests look for is there to be found."""
    small = SmallGuest("old")
    src = small.port.map(bytes(range(64))).hva
    request = sev.pack_dbg(src, small.made.hva(0x1008), 9)
    small.port.sev_op(small.made.vm_fd, sev.SevCmd.DBG_ENCRYPT, request)
    assert small.notes() == ["dropped tail: the last 1 bytes were not written"]


@pytest.mark.parametrize(
    ("gva", "first_bad", "reason"),
    [
        (HOLE_GVA - 8, HOLE_GVA, "not-present"),
        (ROM_GVA - 8, ROM_GVA - 8, "not-present"),
        (ROM_GVA + 5, ROM_GVA + 5, "ROM"),
        (MMIO_GVA, MMIO_GVA, "MMIO"),
    ],
)
def test_a_virtual_write_is_refused_as_a_whole(
    small: SmallGuest, gva: int, first_bad: int, reason: str
) -> None:
    before = small.stored()
    with pytest.raises(errors.MemoryFault) as refused:
        small.guest.write_virtual(gva, bytes(100), small.form)
    assert (refused.value.space, refused.value.address) == ("gva", first_bad)
    assert reason in refused.value.message
    assert small.stored() == before
    assert small.commands()["DBG_ENCRYPT"] == 0
    assert not small.holder.held


@pytest.mark.parametrize(
    ("gpa", "first_bad", "reason"),
    [
        (14 * PAGE - 100, 14 * PAGE, "MMIO or a hole"),
        (MMIO, MMIO, "MMIO or a hole"),
        (ROM, ROM, r"ROM or flash there (rom)"),
        (HIGH + 4 * PAGE - 1, HIGH + 4 * PAGE, "MMIO or a hole"),
    ],
)
def test_a_physical_write_is_refused_as_a_whole(
    small: SmallGuest, gpa: int, first_bad: int, reason: str
) -> None:
    before = small.stored()
    with pytest.raises(errors.MemoryFault) as refused:
        small.guest.write_physical(gpa, bytes(200))
    assert (refused.value.space, refused.value.address) == ("gpa", first_bad)
    assert reason in refused.value.message
    assert small.stored() == before
    # not even read: where a write ends is looked at first
    assert small.commands() == {"DBG_DECRYPT": 0, "DBG_ENCRYPT": 0}


def test_a_page_that_cannot_be_read_is_not_written(small: SmallGuest) -> None:
    before = small.stored()
    small.port.memlock_nbytes = 0
    with pytest.raises(errors.MemoryFault, match=r"cannot be read.*ENOMEM"):
        small.guest.write_physical(0x1000, b"x")
    assert small.stored() == before


def test_one_page_both_ways_is_refused(small: SmallGuest) -> None:
    with pytest.raises(errors.BadGuestData, match="private and as shared"):
        small.memory.plan_write([Span(0x1000, True, b"a"), Span(0x1010, False, b"b")])


def test_a_guess_does_not_cover_the_place_of_roms() -> None:
    slots = SlotMap([Slot(0, 0x200000, 0x10000000, "ram?", guessed=True)])
    writer = MemoryWriter(slots, Plain(), None, lambda page_gpa: None)
    with pytest.raises(errors.MemoryFault, match="guessed") as refused:
        writer.plan([Span(0x9FFF0, False, bytes(0x20))])
    assert refused.value.address == 0xA0000
    assert writer.plan([Span(0x100000, False, b"x")]).nbytes == 1


class Plain:
    """Memory of zeros that takes nothing."""

    reason = "made so"

    def readinto(self, gpa: int, hva: int, buffer: memoryview) -> int:
        return len(buffer)

    def write(self, hva: int, data: bytes) -> None:
        pass


def test_what_does_not_read_back_is_an_error_that_names_the_first_byte() -> None:
    writer = MemoryWriter(SlotMap([Slot(0x1000, 2 * PAGE, 0x10000000)]), Plain(), None, lambda page_gpa: None)
    plan = writer.plan([Span(0x1FF0, False, bytes(16) + b"\0\0\7\7", 0x40_0000)])
    with pytest.raises(errors.WriteFailed) as failed:
        writer.carry_out(plan)
    assert (failed.value.space, failed.value.address) == ("gva", 0x40_0012)
    assert failed.value.written == 16
    assert "16 bytes before that are written" in failed.value.message


def test_a_byte_beside_ours_that_changed_is_told_by_its_own_address() -> None:
    class Careless(Plain):
        data = bytearray(PAGE)

        def readinto(self, gpa: int, hva: int, buffer: memoryview) -> int:
            buffer[:] = self.data[gpa & PAGE - 1 :][: len(buffer)]
            return len(buffer)

        def write(self, hva: int, data: bytes) -> None:
            self.data[(hva & PAGE - 1) : (hva & PAGE - 1) + len(data)] = data[:-1] + b"!"

    careless = Careless()
    writer = MemoryWriter(
        SlotMap([Slot(0x1000, PAGE, 0x10000000)]), careless, careless, lambda page_gpa: None
    )
    with pytest.raises(errors.WriteFailed) as failed:
        writer.carry_out(writer.plan([Span(0x1013, True, b"x", 0x40_0013)]))
    assert (failed.value.space, failed.value.address) == ("gva", 0x40_001F)


@pytest.mark.parametrize(("after", "written"), [(0, 0), (1, 96), (2, 96 + PAGE)])
def test_a_firmware_error_in_the_middle_tells_what_is_written(
    small: SmallGuest, after: int, written: int
) -> None:
    data = bytes(at * 3 & 0xFF for at in range(2 * PAGE + 96))
    start = BASE + PAGE - 96  # 96 bytes of the first page, the second, the third
    fault = parse_fault(f"dbg_encrypt:after={after}:status=HWSEV_RET_PLATFORM")
    small.kernel.firmware.faults = Faults([fault])
    with pytest.raises(errors.WriteFailed, match="HWSEV_RET_PLATFORM") as failed:
        small.guest.write_virtual(start, data, small.form)
    small.kernel.firmware.faults = Faults()
    assert isinstance(failed.value.__cause__, errors.FirmwareError)
    assert (failed.value.written, failed.value.address) == (written, start + written)
    assert small.plaintext() == small.expect(start, data[:written])
    assert not small.holder.held


def test_a_page_that_cannot_be_read_back_is_told(small: SmallGuest) -> None:
    fault = parse_fault("dbg_decrypt:after=1:status=HWSEV_RET_PLATFORM")
    small.kernel.firmware.faults = Faults([fault])
    with pytest.raises(errors.WriteFailed, match="DBG_DECRYPT") as failed:
        small.guest.write_physical(0x1000, b"abc")
    assert failed.value.written == 0


def test_a_policy_that_forbids_it_ends_as_forbidden() -> None:
    small = SmallGuest()
    small.kernel.firmware.faults = Faults([parse_fault("dbg_encrypt:status=POLICY_FAILURE")])
    with pytest.raises(errors.WriteFailed) as failed:
        small.guest.write_physical(0x1000, b"abc")
    assert failed.value.exit_code == errors.EXIT_FORBIDDEN


@pytest.mark.parametrize("private", [True, False])
def test_what_was_remembered_of_a_page_is_forgotten(small: SmallGuest, private: bool) -> None:
    gva = BASE if private else SHARED_GVA
    with small.guest.held():
        assert small.guest.read_virtual(gva, 4, small.form) != b"new!"
        small.guest.write_virtual(gva, b"new!", small.form)
        assert small.guest.read_virtual(gva, 4, small.form) == b"new!"


def test_a_table_that_was_written_translates_anew(small: SmallGuest) -> None:
    with small.guest.held():
        steps = small.guest.translate(BASE, small.form).steps
        last = steps[-1]
        entry = last.entry & ~0xFFFFFFFFFF000 | 0x2000 | 1 << 51
        small.guest.write_physical(last.table_gpa + 8 * last.index, entry.to_bytes(8, "little"))
        assert small.guest.translate(BASE, small.form).gpa == 0x2000


def test_after_a_failure_it_is_forgotten_too(small: SmallGuest) -> None:
    with small.guest.held():
        before = small.guest.read_virtual(BASE, 4, small.form)
        small.kernel.firmware.faults = Faults([parse_fault("dbg_decrypt:after=1:status=HWSEV_RET_PLATFORM")])
        with pytest.raises(errors.WriteFailed):
            small.guest.write_virtual(BASE, b"new!", small.form)
        small.kernel.firmware.faults = Faults()
        assert small.guest.read_virtual(BASE, 4, small.form) == b"new!" != before


def test_a_write_is_held_from_the_first_look_to_the_last(small: SmallGuest) -> None:
    seen: list[bool] = []
    watch(small, lambda: seen.append(small.holder.held))
    small.guest.write_virtual(BASE, b"abc", small.form)
    assert seen
    assert all(seen)
    assert small.holder.holds == 1
    with small.guest.held():
        small.guest.write_physical(0x1000, b"abc")
        assert small.holder.held
    assert small.holder.holds == 2


def watch(small: SmallGuest, see: Callable[[], None]) -> None:
    submit = small.port.submit

    def watched(fd: int, request: int, argument: int = 0) -> None:
        see()
        submit(fd, request, argument)

    small.port.submit = watched  # type: ignore[method-assign]


def test_a_plan_writes_nothing(small: SmallGuest) -> None:
    before = small.stored()
    plan = small.guest.plan_virtual_write(BASE + PAGE - 3, b"abcdef", small.form)
    assert small.stored() == before
    told = [(piece.gva, piece.gpa, piece.private, piece.new) for piece in plan.pieces]
    assert told == [
        (BASE + PAGE - 3, gpa_of(BASE + PAGE - 3), True, b"abc"),
        (BASE + PAGE, gpa_of(BASE + PAGE), True, b"def"),
    ]


def test_a_shared_page_costs_no_command_and_is_written_plainly(small: SmallGuest) -> None:
    plan = small.guest.write_virtual(SHARED_GVA + 7, b"in the clear", small.form)
    assert [piece.private for piece in plan.pieces] == [False]
    assert small.port.read(small.made.hva(SHARED + 7), 12) == b"in the clear"
    assert small.commands()["DBG_ENCRYPT"] == 0


def test_nobody_writes_to_a_dump() -> None:
    class Store:
        ranges = ((0, PAGE),)

    with pytest.raises(errors.UsageError, match="dump"):
        FileMemory(Store()).plan_write([Span(0, True, b"x")])  # type: ignore[arg-type]


def test_parts_of_blocks_never_reach_the_kernel(small: SmallGuest) -> None:
    private = small.memory._private
    assert private is not None
    hva = small.made.hva(0x1000)
    for place, nbytes in [(hva + 8, 16), (hva, 15), (hva + PAGE - 16, 32), (hva, 0)]:
        with pytest.raises(ValueError, match="whole 16-byte blocks"):
            private.write(place, bytes(nbytes))
    assert small.commands()["DBG_ENCRYPT"] == 0
