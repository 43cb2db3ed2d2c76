"""LiME and padded dumps of a guest made of bytes, read back by struct."""

from __future__ import annotations

import os
import struct
import threading
from pathlib import Path

import pytest

from sevkvm import errors
from sevkvm.dump import DumpFormat, DumpOptions, Hole, HoleReason, dump_guest, prepare
from tests.support.fakeguest import PAGE, FakeGuest, UniformPages, pattern


def dump(guest: FakeGuest, path: Path, file_format: DumpFormat, **options):
    options = DumpOptions(format=file_format, **options)
    return dump_guest(guest, options, UniformPages(), prepare(str(path)))


def piped(guest: FakeGuest, path: Path, file_format: DumpFormat):
    """The result, and what came out of a pipe."""
    os.mkfifo(path)
    chunks = []
    reader = threading.Thread(target=lambda: chunks.append(path.read_bytes()))
    reader.start()
    try:
        result = dump(guest, path, file_format)
    finally:
        reader.join(20)
    return result, chunks[0]


def ranges(data: bytes) -> list[tuple[int, bytes]]:
    found = []
    at = 0
    while at < len(data):
        magic, version, first, last, reserved = struct.unpack_from("<IIQQQ", data, at)
        assert (magic, version, reserved) == (0x4C694D45, 1, 0)
        nbytes = last - first + 1
        found.append((first, data[at + 32 : at + 32 + nbytes]))
        assert len(found[-1][1]) == nbytes
        at += 32 + nbytes
    return found


LOW, HIGH = pattern(20 * PAGE), pattern(5 * PAGE, seed=2) + bytes(3 * PAGE)


def test_a_lime_range_a_block_of_memory(tmp_path):
    result = dump(FakeGuest({0: LOW, 0x100000: HIGH}), tmp_path / "ram", DumpFormat.LIME)
    data = (tmp_path / "ram").read_bytes()
    assert data[:4] == b"EMiL"
    assert ranges(data) == [(0, LOW), (0x100000, HIGH)]
    assert result.complete
    assert result.file_nbytes == len(data)
    assert [(p.piece.gpa, p.piece.nbytes, p.offset) for p in result.ranges] == [
        (0, len(LOW), 32), (0x100000, len(HIGH), 64 + len(LOW))
    ]  # fmt: skip


def test_slots_that_touch_are_one_lime_range(tmp_path):
    dump(FakeGuest({0: LOW[:0x3000], 0x3000: LOW[0x3000:]}), tmp_path / "ram", DumpFormat.LIME)
    assert ranges((tmp_path / "ram").read_bytes()) == [(0, LOW)]


def test_unreadable_pages_are_in_no_lime_range(tmp_path):
    bad = [0, 5, 6, 19]
    guest = FakeGuest({0: LOW, 0x100000: HIGH}, bad_pages=[page * PAGE for page in bad])
    result = dump(guest, tmp_path / "ram", DumpFormat.LIME)
    data = (tmp_path / "ram").read_bytes()
    assert ranges(data) == [
        (PAGE, LOW[PAGE : 5 * PAGE]), (7 * PAGE, LOW[7 * PAGE : 19 * PAGE]), (0x100000, HIGH)
    ]  # fmt: skip
    assert not result.complete
    assert not any(hole.zero_filled for hole in result.holes)
    assert [
        (p.piece.gpa, data[p.offset : p.offset + p.piece.nbytes]) for p in result.ranges
    ] == ranges(data)  # fmt: skip


def test_a_range_that_cannot_be_read_at_all_leaves_no_header(tmp_path):
    guest = FakeGuest({0: LOW, 0x100000: HIGH}, bad_pages=range(0, len(LOW), PAGE))
    result = dump(guest, tmp_path / "ram", DumpFormat.LIME)
    assert ranges((tmp_path / "ram").read_bytes()) == [(0x100000, HIGH)]
    assert result.holes[0].nbytes == len(LOW)


def test_a_pipe_gets_the_same_lime_file_and_zeros_for_what_is_lost(tmp_path):
    guest = FakeGuest({0: LOW, 0x100000: HIGH}, bad_pages=[5 * PAGE])
    result, data = piped(guest, tmp_path / "pipe", DumpFormat.LIME)
    low = LOW[: 5 * PAGE] + bytes(PAGE) + LOW[6 * PAGE :]
    assert ranges(data) == [(0, low), (0x100000, HIGH)]
    assert Hole(5 * PAGE, PAGE, HoleReason.UNREADABLE, zero_filled=True) in result.holes


def test_a_padded_byte_is_at_its_gpa_and_nothing_is_sparse(tmp_path):
    low = pattern(PAGE) + bytes(40 * PAGE) + pattern(PAGE)
    guest = FakeGuest({0x10000: low, 0x200000: HIGH}, bad_pages=[0x200000])
    result = dump(guest, tmp_path / "ram", DumpFormat.PADDED)
    data = (tmp_path / "ram").read_bytes()
    high = bytes(PAGE) + HIGH[PAGE:]
    assert data == (bytes(0x10000) + low).ljust(0x200000, b"\0") + high
    assert (tmp_path / "ram").stat().st_blocks * 512 >= len(data)
    assert result.file_nbytes == len(data)
    assert not result.complete


def test_a_padded_range_keeps_its_gpa(tmp_path):
    dump(FakeGuest({0: LOW}), tmp_path / "ram", DumpFormat.PADDED, gpa=(0x1803, 0x5005))
    assert (tmp_path / "ram").read_bytes() == bytes(0x1803) + LOW[0x1803:0x5005]


def test_a_pipe_gets_the_same_padded_file(tmp_path):
    result, data = piped(FakeGuest({0x3000: LOW}), tmp_path / "pipe", DumpFormat.PADDED)
    assert data == bytes(0x3000) + LOW
    assert result.complete


@pytest.mark.parametrize("file_format", [DumpFormat.LIME, DumpFormat.PADDED])
def test_virtual_addresses_have_no_place_in_them(tmp_path, file_format):
    with pytest.raises(errors.UsageError, match="guest-physical"):
        dump(FakeGuest({0: LOW}), tmp_path / "ram", file_format, gva=(0, PAGE))
    assert list(tmp_path.iterdir()) == []
