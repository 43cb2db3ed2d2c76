"""Devices beside memory: one access an item, in order, none that is not shown; and whom it is that holds the vCPUs."""

from __future__ import annotations

import json

import pytest

from sevkvm import errors
from sevkvm.gdbserver.alone import AloneTarget
from sevkvm.gdbserver.session import Session
from sevkvm.guest import Guest
from sevkvm.lab.demo import DemoOptions, demo_image
from sevkvm.lab.image import Image
from sevkvm.memory.source import Slot
from sevkvm.monitor.examine import examine, parse_format
from sevkvm.monitor.monitor import Monitor
from sevkvm.monitor.outside import NoOutside
from sevkvm.monitor.places import Places
from sevkvm.monitor.runcontrol import RunControl
from sevkvm.paging.form import PagingMode
from tests.unit.test_guest import CBIT, MIB, Holder, launch, open_fake

MMIO = 0xFED00000
END = MMIO + 0x18  # nothing answers from here on


class FakeDevices:
    """A device whose every register tells how often it was read; the VMM answers when its vCPUs are not held."""

    def __init__(self) -> None:
        self.reads: list[tuple[int, int]] = []
        self.stopped = False
        self.closed = 0
        self.holder: Holder | None = None

    def read(self, gpa: int, nbytes: int) -> bytes:
        assert self.holder is not None
        assert not self.holder.held, "the VMM would not answer"
        if not MMIO <= gpa < END:
            raise errors.MemoryFault("gpa", gpa, reason="neither RAM nor a device is there")
        self.reads.append((gpa, nbytes))
        return self.reads.count((gpa, nbytes)).to_bytes(nbytes, "little")

    def paused(self) -> bool:
        return self.stopped

    def close(self) -> None:
        self.closed += 1


@pytest.fixture(scope="module")
def image() -> Image:
    return demo_image(DemoOptions(memory_nbytes=8 * MIB, cbit_pos=CBIT, vcpus=1))


@pytest.fixture
def devices() -> FakeDevices:
    return FakeDevices()


@pytest.fixture
def guest(image: Image, devices: FakeDevices) -> Guest:
    """Virtual addresses are physical ones."""
    guest, devices.holder = open_fake(launch(image), devices=devices, paging=PagingMode.OFF)
    return guest


@pytest.fixture
def end(image: Image) -> int:
    """Of RAM."""
    return max(slot.gpa + slot.nbytes for slot in image.slots)


def shown(guest: Guest, text: str, address: int) -> list[str]:
    places = Places(guest, guest.read_physical)
    return list(examine(places.memory, parse_format(text), address, places.register))


@pytest.mark.parametrize(("size", "nbytes"), [("b", 1), ("h", 2), ("w", 4), ("g", 8)])
@pytest.mark.parametrize("count", [1, 2])
def test_one_access_an_item(guest: Guest, devices: FakeDevices, size: str, nbytes: int, count: int) -> None:
    (line,) = shown(guest, f"/{count}x{size}", MMIO)
    assert line == f"{MMIO:016x}: " + " ".join([f"0x{1:0{2 * nbytes}x}"] * count)
    assert devices.reads == [(MMIO + at * nbytes, nbytes) for at in range(count)]


def test_characters_are_bytes_of_items(guest: Guest, devices: FakeDevices) -> None:
    (line,) = shown(guest, "/1cw", MMIO)
    assert line == rf"{MMIO:016x}: '\x01' '\x00' '\x00' '\x00'"
    assert devices.reads == [(MMIO, 4)]


def test_nothing_is_read_after_what_cannot_be_read(guest: Guest, devices: FakeDevices) -> None:
    lines = shown(guest, "/100xg", MMIO)
    assert lines[1:] == [f"{MMIO + 16:016x}: Cannot access memory"]
    assert devices.reads == [(MMIO, 8), (MMIO + 8, 8), (MMIO + 16, 8)]
    assert shown(guest, "/1xg", END) == [f"{END:016x}: Cannot access memory"]
    assert shown(guest, "/2xw", MMIO - 4) == [f"{MMIO - 4:016x}: Cannot access memory"]
    assert len(devices.reads) == 3


def test_a_line_of_both(image: Image, devices: FakeDevices) -> None:
    fake = launch(image)
    guest, devices.holder = open_fake(fake, devices=devices)
    (low, *_) = guest.slots
    at = MMIO - 8
    # the last page of a slot that ends where the device begins
    slots = [Slot(MMIO - 0x1000, 0x1000, low.hva, "ram")]
    guest.memory.slots = type(guest.slots)(slots)
    (line,) = shown(guest, "/4xw", at)
    words = guest.read_physical(at, 8)
    assert line == (
        f"{at:016x}: 0x{int.from_bytes(words[:4], 'little'):08x} 0x{int.from_bytes(words[4:], 'little'):08x}"
        " 0x00000001 0x00000001"
    )
    assert devices.reads == [(MMIO, 4), (MMIO + 4, 4)]
    # an item that begins in memory is none of a device's
    assert shown(guest, "/1xg", MMIO - 4) == [f"{MMIO - 4:016x}: Cannot access memory"]
    assert len(devices.reads) == 2


def test_not_unless_asked_for(image: Image) -> None:
    guest, holder = open_fake(launch(image), paging=PagingMode.OFF)
    outside = NoOutside()
    monitor = Monitor(guest, outside, RunControl(guest, outside))
    for _ in range(2):
        assert monitor.execute(f"xp /2xw {MMIO:#x}") == f"{MMIO:016x}: Cannot access memory\n"
        assert monitor.status == 6
    (warning,) = holder.warnings
    assert "gpa 0xfed00000 is no RAM: with --mmio" in warning
    with pytest.raises(errors.NotMemory):
        guest.read_device(MMIO, 4)


@pytest.mark.parametrize("command", ["x", "xp"])
def test_the_monitor_asks_while_the_vcpus_run(guest: Guest, devices: FakeDevices, command: str) -> None:
    outside = NoOutside()
    monitor = Monitor(guest, outside, RunControl(guest, outside))
    assert monitor.execute(f"{command} /2xw {MMIO:#x}") == f"{MMIO:016x}: 0x00000001 0x00000001\n"
    assert monitor.execute(f"{command} /1xw {MMIO:#x}") == f"{MMIO:016x}: 0x00000002\n"
    assert monitor.execute(f"{command} /2i {MMIO:#x}") == f"0x{MMIO:08x}: unable to read memory\n"
    assert monitor.execute(f'memsave {MMIO:#x} 4 "/nowhere/x"').startswith("Error: ")
    assert devices.reads == [(MMIO, 4), (MMIO + 4, 4), (MMIO, 4)]
    assert devices.closed >= 2
    assert devices.holder is not None
    assert devices.holder.warnings == []


def test_instructions_are_no_devices_affair(guest: Guest, devices: FakeDevices, image: Image) -> None:
    outside = NoOutside()
    monitor = Monitor(guest, outside, RunControl(guest, outside), output_nbytes=2000)
    assert devices.holder is not None
    assert monitor.execute("x /1i 0x1000").startswith("0x00001000:  ")
    assert monitor.execute("x /10000000i 0x1000").endswith("... cut after 2000 bytes\n")
    assert not devices.holder.held
    assert devices.reads == []


class TestGdb:
    def ask(self, session: Session, packet: bytes) -> bytes:
        (answer,) = session.answer(packet)
        return answer

    def test_held_and_running(self, guest: Guest, devices: FakeDevices) -> None:
        told: list[str] = []
        session = Session(AloneTarget(guest), say=told.append)
        assert self.ask(session, b"m%x,4" % MMIO) == b"E0e"
        assert devices.reads == []
        assert "while its vCPU threads are held (pause the guest" in told[0]
        session.close()

    def test_held_and_paused_by_the_vmm(self, guest: Guest, devices: FakeDevices) -> None:
        devices.stopped = True
        session = Session(AloneTarget(guest))
        assert self.ask(session, b"m%x,4" % MMIO) == b"01000000"
        assert self.ask(session, b"x%x,4" % MMIO) == b"b\x02\0\0\0"
        assert devices.holder is not None
        assert devices.holder.held
        session.close()
        assert not devices.holder.held
        assert devices.closed >= 2

    def test_in_front_of_a_stub_that_has_stopped_the_guest(self, guest: Guest, devices: FakeDevices) -> None:
        session = Session(AloneTarget(guest, hold=False))
        for nbytes in (1, 2, 4, 8):
            assert self.ask(session, b"m%x,%x" % (MMIO, nbytes)) == b"01".ljust(2 * nbytes, b"0")
        assert devices.reads == [(MMIO, nbytes) for nbytes in (1, 2, 4, 8)]
        told = session._said
        for nbytes in (3, 16, 0xFFFF):
            assert self.ask(session, b"m%x,%x" % (MMIO, nbytes)) == b"E0e"
        assert any("1, 2, 4 or 8 bytes" in text for text in told)
        assert len(devices.reads) == 4

    def test_not_unless_asked_for(self, image: Image) -> None:
        guest, holder = open_fake(launch(image), paging=PagingMode.OFF)
        session = Session(AloneTarget(guest))
        assert self.ask(session, b"m%x,4" % MMIO) == self.ask(session, b"m%x,4" % MMIO) == b"E0e"
        session.close()
        assert len(holder.warnings) == 1
        assert "--mmio" in holder.warnings[0]


def test_what_a_device_told_is_shown_though_the_next_one_fails(
    guest: Guest, devices: FakeDevices, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer that cannot be believed, or does not come, ends the command; what was read is there."""
    places = Places(guest, guest.read_physical)
    lines = iter(examine(places.memory, parse_format("/3xg"), MMIO, places.register))
    assert next(lines) == f"{MMIO:016x}: 0x{1:016x} 0x{1:016x}"

    def late(gpa: int, nbytes: int) -> bytes:
        raise errors.TargetTimeout("the monitor has not answered")

    monkeypatch.setattr(devices, "read", late)
    with pytest.raises(errors.TargetTimeout):
        next(lines)


def test_pages_that_were_kept_are_not_read_again(image: Image, devices: FakeDevices) -> None:
    guest, devices.holder = open_fake(launch(image), devices=devices, paging=PagingMode.OFF)
    asked: list[tuple[int, int]] = []

    def read(address: int, nbytes: int) -> bytes:
        asked.append((address, nbytes))
        return guest.read_physical(address, nbytes)

    places = Places(guest, read)
    with guest.held():
        places.keep(0x1FF0, 0x2000)
    before = list(asked)
    assert before == [(0x1FF0, 0x10), (0x2000, 0x1000), (0x3000, 0xFF0)]
    (first, *_) = examine(places.memory, parse_format("/1024xg"), 0x1FF0, places.register)
    assert asked == before
    assert first.startswith("0000000000001ff0: 0x")
    assert json.dumps(places.accesses) == "0"


def test_the_monitor_shows_what_a_device_told_before_an_error(
    guest: Guest, devices: FakeDevices, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = NoOutside()
    monitor = Monitor(guest, outside, RunControl(guest, outside))
    once = devices.read

    def read(gpa: int, nbytes: int) -> bytes:
        if gpa >= MMIO + 16:
            raise errors.ProtocolError("the monitor broke off")
        return once(gpa, nbytes)

    monkeypatch.setattr(devices, "read", read)
    assert monitor.execute(f"xp /6xw {MMIO:#x}") == (
        f"{MMIO:016x}: 0x00000001 0x00000001 0x00000001 0x00000001\nError: the monitor broke off\n"
    )
    assert monitor.status == 1
    assert monitor.execute("print 1") == "0x1\n"
