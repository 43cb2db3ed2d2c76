"""SlotMap: where guest-physical addresses live."""

from __future__ import annotations

import pytest

from sevkvm import errors
from sevkvm.memory.source import Extent, Slot, SlotMap

LOW = Slot(0x0, 0xA000, 0x7F0000000000, "pc.ram")
ROM = Slot(0xC000, 0x2000, 0x7F1000000000, "rom", readonly=True)
NEXT = Slot(0xE000, 0x2000, 0x7F2000000000, "pc.ram")
HIGH = Slot(0x1_0000_0000, 0x10000, 0x7F0080000000, "pc.ram")
SLOTS = SlotMap([HIGH, NEXT, LOW, ROM])


def test_sorted_and_sized() -> None:
    assert SLOTS.slots == (LOW, ROM, NEXT, HIGH)
    assert SLOTS.nbytes == 0xA000 + 0x2000 + 0x2000 + 0x10000


@pytest.mark.parametrize(
    ("gpa", "hva"),
    [
        (0x0, 0x7F0000000000),
        (0x9FFF, 0x7F0000009FFF),
        (0xA000, None),
        (0xBFFF, None),
        (0xC001, 0x7F1000000001),
        (0xFFFF, 0x7F2000001FFF),
        (0x10000, None),
        (0x1_0000_0000, 0x7F0080000000),
        (0x1_0001_0000, None),
    ],
)
def test_hva(gpa: int, hva: int | None) -> None:
    assert SLOTS.hva(gpa) == hva
    assert (SLOTS.find(gpa) is None) == (hva is None)


def test_extents_leave_holes_out_and_cross_slots_that_touch() -> None:
    assert list(SLOTS.extents(0x9000, 0x6000)) == [
        Extent(0x9000, 0x1000, 0x7F0000009000),
        Extent(0xC000, 0x2000, 0x7F1000000000),
        Extent(0xE000, 0x1000, 0x7F2000000000),
    ]
    assert list(SLOTS.extents(0x2_0000_0000, 0x1000)) == []
    assert list(SLOTS.extents(0xA000, 0x2000)) == []


@pytest.mark.parametrize(
    "slot",
    [
        Slot(0x1000, 0, 0x7F0000000000),
        Slot(0x1001, 0x1000, 0x7F0000000000),
        Slot(0x1000, 0x1001, 0x7F0000000000),
        Slot(0x1000, 0x1000, 0x7F0000000010),
        Slot(1 << 52, 0x1000, 0x7F0000000000),
    ],
)
def test_what_is_no_slot(slot: Slot) -> None:
    with pytest.raises(errors.UsageError):
        SlotMap([slot])


def test_overlaps_are_refused() -> None:
    with pytest.raises(errors.UsageError, match="overlap"):
        SlotMap([LOW, Slot(0x9000, 0x1000, 0x7F5000000000)])
