"""What is behind a process's memory: told by pagemap and by holes of files, with nothing brought in."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sevkvm import native
from sevkvm.host.backing import Backing

PAGE = 4096
NPAGES = 64
TOUCHED = {0, 1, 5, 40, 63}


@contextmanager
def mapped(fd: int, flags: int) -> Iterator[tuple[mmap.mmap, int]]:
    """64 pages without huge pages among them, and where they are."""
    area = mmap.mmap(fd, NPAGES * PAGE, flags=flags)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        area.madvise(mmap.MADV_NOHUGEPAGE)
    try:
        yield area, native.address_of(area)
    finally:
        area.close()


def states(hva: int, pid: int = 0) -> list[bool | None]:
    """By page; the ranges must leave no gap."""
    found: list[bool | None] = []
    for start, nbytes, state in Backing(pid or os.getpid()).ranges(hva, NPAGES * PAGE):
        assert start == hva + len(found) * PAGE
        found += [state] * (nbytes // PAGE)
    assert len(found) == NPAGES
    return found


def touch(area: mmap.mmap) -> None:
    for page in TOUCHED:
        area[page * PAGE + 7] = 1


def test_anonymous_memory() -> None:
    with mapped(-1, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as (area, hva):
        touch(area)
        assert states(hva) == [page in TOUCHED for page in range(NPAGES)]


def may_open_map_files() -> bool:
    try:
        with next(Path("/proc/self/map_files").iterdir()).open("rb"):
            return True
    except OSError:
        return False


def test_a_memfd_is_not_filled_by_being_asked_about() -> None:
    fd = os.memfd_create("ram")
    os.ftruncate(fd, NPAGES * PAGE)
    try:
        with mapped(fd, mmap.MAP_SHARED) as (area, hva):
            touch(area)
            os.pwrite(fd, b"x", 9 * PAGE)  # in the file, not in our page tables
            before = os.fstat(fd).st_blocks
            found = states(hva)
            assert os.fstat(fd).st_blocks == before
    finally:
        os.close(fd)
    hole = False if may_open_map_files() else None
    assert found == [True if page in TOUCHED else None if page == 9 else hole for page in range(NPAGES)]


def test_a_private_mapping_of_a_file_has_what_the_file_has() -> None:
    with tempfile.TemporaryFile() as file:
        file.write(b"x" * NPAGES * PAGE)
        file.flush()
        with mapped(file.fileno(), mmap.MAP_PRIVATE) as (area, hva):
            touch(area)
            found = states(hva)
    assert all(found[page] is True for page in TOUCHED)
    assert False not in found


def test_what_is_not_mapped_cannot_be_told() -> None:
    with mapped(-1, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as (_, hva):
        pass
    assert True not in states(hva)


@pytest.mark.parametrize("pagemap", [None, b""])
def test_without_a_pagemap_nothing_can_be_told(tmp_path: Path, pagemap: bytes | None) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "maps").write_text("10000-90000 rw-p 00000000 00:00 0\n")
    if pagemap is not None:
        (tmp_path / "7" / "pagemap").write_bytes(pagemap)
    assert list(Backing(7, tmp_path).ranges(0x8000, 0x90000)) == [
        (0x8000, 0x8000, None),
        (0x10000, 0x80000, None),
        (0x90000, 0x8000, None),
    ]


def test_swapped_pages_are_left_where_they_are(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "maps").write_text("0-4000 rw-p 00000000 00:00 0\n")
    entries = (1 << 63, 1 << 62, 0, 1 << 63 | 1 << 55)
    (tmp_path / "7" / "pagemap").write_bytes(b"".join(entry.to_bytes(8, "little") for entry in entries))
    assert list(Backing(7, tmp_path).ranges(0, 0x4000)) == [
        (0, PAGE, True),
        (PAGE, PAGE, None),
        (2 * PAGE, PAGE, False),
        (3 * PAGE, PAGE, True),
    ]
