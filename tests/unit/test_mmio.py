"""Registers of devices through a VMM's monitor: one access each, exactly as wide as asked for; answers are hostile."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sevkvm import errors
from sevkvm.host import mtree
from sevkvm.host.mmio import DeviceMonitor
from sevkvm.host.mtree import Region
from tests.unit.test_mtree import TEXT

IOAPIC, VFIO = 0xFEC00000, 0xE0000000


class FakeMonitor:
    """Says what it is told to say; ``asked`` is what it was asked, but for the map."""

    def __init__(self, *answers: str, text: str = TEXT) -> None:
        self.asked: list[str] = []
        self.maps = 0
        self.closed = False
        self._answers = list(answers)
        self._text = text

    def hmp(self, command: str) -> str:
        if command == "info mtree -f":
            self.maps += 1
            return self._text
        self.asked.append(command)
        return self._answers.pop(0)

    def execute(self, command: str, arguments: Mapping[str, object] | None = None) -> object:
        raise AssertionError(command)

    def close(self) -> None:
        self.closed = True


def test_all_regions_of_the_view_of_memory() -> None:
    regions = mtree.regions(TEXT)
    assert Region(VFIO, VFIO + 0x1000, "0000:01:00.0 BAR 0 mmaps[0]", True) in regions
    assert Region(IOAPIC, IOAPIC + 0x1000, "kvm-ioapic", True) in regions
    assert Region(0x1C0001000, 0x1C0002000, "not-for-kvm", False) in regions
    assert [region.name for region in regions if region.is_device] == [
        "0000:01:00.0 BAR 0 mmaps[0]",
        "kvm-ioapic",
        "kvm-apic-msi",
    ]


@pytest.mark.parametrize(
    ("nbytes", "letter", "digits"),
    [(1, "b", "7f"), (2, "h", "807f"), (4, "w", "0000807f"), (8, "g", "00" * 7 + "7f")],
)
def test_one_access_as_wide_as_asked_for(nbytes: int, letter: str, digits: str) -> None:
    monitor = FakeMonitor(f"00000000fec00010: 0x{digits}\n")
    assert DeviceMonitor(monitor).read(IOAPIC + 16, nbytes) == int(digits, 16).to_bytes(nbytes, "little")
    assert monitor.asked == [f"xp /1x{letter} 0xfec00010"]


def test_where_devices_are_is_asked_once() -> None:
    monitor = FakeMonitor("00000000e0000000: 0x00000001\n", "00000000e0000004: 0x00000002\n")
    devices = DeviceMonitor(monitor)
    assert devices.read(VFIO, 4) + devices.read(VFIO + 4, 4) == bytes([1, 0, 0, 0, 2, 0, 0, 0])
    assert monitor.maps == 1
    assert len(monitor.asked) == 2
    devices.close()
    assert monitor.closed


@pytest.mark.parametrize(
    ("gpa", "nbytes", "why"),
    [
        (0xD0000000, 4, "neither RAM nor a device"),
        (0x1000, 4, "'pc.ram' there is memory"),  # of an encrypted guest, it would be ciphertext
        (0x1C0001000, 4, "'not-for-kvm' there is memory"),
        (IOAPIC + 0xFFE, 4, "the registers of 'kvm-ioapic' end"),
        (1 << 52, 4, "neither RAM"),
    ],
)
def test_nothing_is_asked_of_what_is_no_device(gpa: int, nbytes: int, why: str) -> None:
    monitor = FakeMonitor()
    with pytest.raises(errors.MemoryFault, match=why) as caught:
        DeviceMonitor(monitor).read(gpa, nbytes)
    assert caught.value.address == gpa
    assert monitor.asked == []


def test_a_device_that_refuses() -> None:
    with pytest.raises(errors.MemoryFault, match="'kvm-ioapic' refuses the access"):
        DeviceMonitor(FakeMonitor("00000000fec00000: Cannot access memory\n")).read(IOAPIC, 4)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "00000000fec00000: 0x00000001",
        "00000000fec00000: 0x01\n",
        "00000000fec00000: 0x0000000000000001\n",
        "00000000fec00004: 0x00000001\n",
        "00000000fec00000: 0x00000001 0x00000002\n",
        "00000000fec00000: 0x00000001\n00000000fec00004: 0x00000001\n",
        "unknown command: 'xp'\n",
        "00000000fec00000: 0x" + "0" * 10_000_000,
    ],
)
def test_an_answer_that_is_none(answer: str) -> None:
    monitor = FakeMonitor(answer)
    with pytest.raises(errors.ProtocolError, match="the monitor answered `xp`") as caught:
        DeviceMonitor(monitor).read(IOAPIC, 4)
    assert len(str(caught.value)) < 300
    assert len(monitor.asked) == 1  # and never again


@given(st.text(max_size=200) | st.from_regex(r"[0-9a-f]{16}: (0x[0-9a-f]{0,17}|Cannot access memory)\n?"))
def test_any_answer_is_a_value_or_an_error(answer: str) -> None:
    with contextlib.suppress(errors.ProtocolError, errors.MemoryFault):
        assert len(DeviceMonitor(FakeMonitor(answer)).read(IOAPIC, 2)) == 2


@given(st.text(max_size=300))
def test_any_map_is_a_map_or_an_error(text: str) -> None:
    hostile = TEXT.replace("kvm-ioapic\n", f"kvm-ioapic\n{text}\n")
    with contextlib.suppress(errors.ProtocolError):
        assert all(region.gpa < region.end for region in mtree.regions(hostile))


def test_a_map_is_bounded() -> None:
    line = "  00000000e0000000-00000000e0000fff (prio 0, i/o): x\n"
    with pytest.raises(errors.ProtocolError, match="more than"):
        mtree.regions(TEXT.replace("  00000000fec", line * 5000 + "  00000000fec", 1))
