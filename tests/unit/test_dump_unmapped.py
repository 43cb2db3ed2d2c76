"""Pages that no page table reaches: read as told, or left out of each format without being a loss."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from sevkvm import errors
from sevkvm.dump import DumpFormat, DumpOptions, DumpResult, Hole, HoleReason, Unmapped, dump_guest, prepare
from sevkvm.dump import unmapped as module
from tests.support.fakeguest import PAGE, FakeGuest, ListedPages, pattern
from tests.support.kdumpread import KdumpFile
from tests.unit.test_dump_lime import ranges

LOW, HIGH = pattern(16 * PAGE), pattern(4 * PAGE, seed=2)
HIGH_GPA = 0x100000
PAGES = ListedPages(
    (0, 2 * PAGE, False, "unmapped"),
    (2 * PAGE, 3 * PAGE, False, "shared"),
    (5 * PAGE, PAGE, True, "unmapped"),
    (6 * PAGE, PAGE, False, "unmapped"),  # a neighbour, read otherwise
    (7 * PAGE, 9 * PAGE, True, "private"),
    (HIGH_GPA, 3 * PAGE, False, "shared"),
    (HIGH_GPA + 3 * PAGE, PAGE, True, "unmapped"),
)
LEFT_OUT = [(0, 2 * PAGE), (5 * PAGE, 2 * PAGE), (HIGH_GPA + 3 * PAGE, PAGE)]


def private(data: bytes) -> bytes:
    """As FakeMemory shows it."""
    return bytes(byte ^ 0xFF for byte in data)


def dump(path: Path, file_format: DumpFormat, unmapped: Unmapped, pages=PAGES, **options) -> DumpResult:
    guest = FakeGuest({0: LOW, HIGH_GPA: HIGH}, states=[])
    return dump_guest(
        guest, DumpOptions(file_format, unmapped=unmapped, **options), pages, prepare(str(path))
    )


def expected() -> dict[int, bytes]:
    """gpa to bytes of what is left when they are skipped."""
    return {
        2 * PAGE: LOW[2 * PAGE : 5 * PAGE],
        7 * PAGE: private(LOW[7 * PAGE :]),
        HIGH_GPA: HIGH[: 3 * PAGE],
    }


def skipped(path: Path, file_format: DumpFormat) -> DumpResult:
    result = dump(path, file_format, Unmapped.SKIP)
    assert result.complete
    left_out = [(hole.address, hole.nbytes) for hole in result.holes if hole.reason is HoleReason.LEFT_OUT]
    assert left_out == LEFT_OUT
    assert Hole(16 * PAGE, HIGH_GPA - 16 * PAGE, HoleReason.NOT_RAM) in result.holes
    assert {hole.reason for hole in result.holes} == {HoleReason.LEFT_OUT, HoleReason.NOT_RAM}
    assert result.copied_nbytes == sum(map(len, expected().values()))
    return result


@pytest.mark.parametrize("file_format", [DumpFormat.RAW, DumpFormat.PADDED])
def test_zeros_by_offset(tmp_path, file_format):
    skipped(tmp_path / "ram", file_format)
    want = bytearray(HIGH_GPA + 4 * PAGE)
    for gpa, data in expected().items():
        want[gpa : gpa + len(data)] = data
    assert (tmp_path / "ram").read_bytes() == want


def test_raw_files_have_holes_there(tmp_path):
    guest = FakeGuest({0: pattern(256 * PAGE)})
    pages = ListedPages((0, PAGE, False, "shared"), (PAGE, 255 * PAGE, True, "unmapped"))
    options = DumpOptions(unmapped=Unmapped.SKIP)
    dump_guest(guest, options, pages, prepare(str(tmp_path / "ram")))
    assert (tmp_path / "ram").stat().st_size == 256 * PAGE
    assert (tmp_path / "ram").stat().st_blocks * 512 < 128 * PAGE


def test_elf_has_no_segment_there(tmp_path):
    skipped(tmp_path / "core", DumpFormat.ELF)
    with (tmp_path / "core").open("rb") as file:
        loads = {each["p_paddr"]: each.data() for each in ELFFile(file).iter_segments("PT_LOAD")}
    assert loads == expected()


def test_lime_has_no_range_there(tmp_path):
    skipped(tmp_path / "ram", DumpFormat.LIME)
    assert dict(ranges((tmp_path / "ram").read_bytes())) == expected()


@pytest.mark.parametrize("file_format", [DumpFormat.LIME, DumpFormat.ELF])
def test_they_are_left_out_of_a_pipe_too(tmp_path, file_format):
    """Unlike what cannot be read, they are known before the first byte is written."""
    os.mkfifo(tmp_path / "pipe")
    chunks = []
    reader = threading.Thread(target=lambda: chunks.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    try:
        result = dump(tmp_path / "pipe", file_format, Unmapped.SKIP)
    finally:
        reader.join(20)
    assert result.complete
    assert not any(hole.zero_filled for hole in result.holes)
    assert len(chunks[0]) == result.file_nbytes
    assert LOW[5 * PAGE : 6 * PAGE] not in chunks[0]
    if file_format is DumpFormat.LIME:
        assert dict(ranges(chunks[0])) == expected()


def test_kdump_has_them_in_the_first_bitmap_alone(tmp_path):
    skipped(tmp_path / "vmcore", DumpFormat.KDUMP)
    file = KdumpFile(tmp_path / "vmcore")
    assert file.ram == [*range(16), *range(HIGH_GPA // PAGE, HIGH_GPA // PAGE + 4)]
    assert {pfn: page for pfn, (page, _, _) in file.pages.items()} == {
        (gpa + at) // PAGE: data[at : at + PAGE]
        for gpa, data in expected().items()
        for at in range(0, len(data), PAGE)
    }


def test_private_is_as_the_page_map_says_and_shared_is_not(tmp_path):
    dump(tmp_path / "private", DumpFormat.RAW, Unmapped.PRIVATE)
    dump(tmp_path / "shared", DumpFormat.RAW, Unmapped.SHARED)
    as_private, as_shared = ((tmp_path / name).read_bytes() for name in ("private", "shared"))
    assert as_private[5 * PAGE : 6 * PAGE] == private(LOW[5 * PAGE : 6 * PAGE])
    assert as_shared[5 * PAGE : 6 * PAGE] == LOW[5 * PAGE : 6 * PAGE]
    assert as_shared[7 * PAGE : 16 * PAGE] == as_private[7 * PAGE : 16 * PAGE] == private(LOW[7 * PAGE :])


def test_a_range_that_begins_in_the_middle_of_a_run(tmp_path):
    result = dump(tmp_path / "ram", DumpFormat.RAW, Unmapped.SKIP, gpa=(PAGE + 16, 6 * PAGE))
    assert [(hole.address, hole.nbytes) for hole in result.holes] == [
        (PAGE + 16, PAGE - 16),
        (5 * PAGE, PAGE),
    ]
    want = bytes(PAGE - 16) + LOW[2 * PAGE : 5 * PAGE] + bytes(PAGE)
    assert (tmp_path / "ram").read_bytes() == want


def test_nothing_left_is_told_before_a_file_exists(tmp_path):
    with pytest.raises(errors.UsageError, match="leaves out all of it"):
        dump(tmp_path / "ram", DumpFormat.RAW, Unmapped.SKIP, gpa=(0, 2 * PAGE))
    assert list(tmp_path.iterdir()) == []


def test_a_guest_that_maps_every_other_page_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_RANGES", 2)
    with pytest.raises(errors.UsageError, match="more than 2 ranges"):
        dump(tmp_path / "ram", DumpFormat.RAW, Unmapped.SKIP)
    assert list(tmp_path.iterdir()) == []
