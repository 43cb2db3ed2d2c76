"""A VMM's memory mapped a second time: this process plays both parts."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sevkvm import errors, native
from sevkvm.host.mapped import MappedVmm, PlainPort
from sevkvm.host.ramview import RamView

PAGE = 4096
NPAGES = 8


@pytest.fixture
def memfd() -> Iterator[int]:
    fd = os.memfd_create("ram")
    os.ftruncate(fd, NPAGES * PAGE)
    yield fd
    os.close(fd)


@pytest.fixture
def view() -> Iterator[RamView]:
    view = RamView(os.getpid())
    yield view
    view.close()


def shared(fd: int, nbytes: int = NPAGES * PAGE, flags: int = mmap.MAP_SHARED) -> tuple[mmap.mmap, int]:
    ram = mmap.mmap(fd, nbytes, flags)
    return ram, native.address_of(ram)


def test_the_same_pages_at_other_addresses(memfd: int, view: RamView) -> None:
    ram, hva = shared(memfd)
    assert view.add(hva + PAGE, 2 * PAGE) is None
    ours = view.at(hva + PAGE + 5)
    assert ours is not None
    assert ours != hva + PAGE + 5
    assert ours % PAGE == 5
    ram[PAGE + 5 : PAGE + 10] = b"hello"
    assert native.read(os.getpid(), ours, 5) == b"hello"
    assert view.extent(hva + PAGE) == (NPAGES - 1) * PAGE  # all of the mapping


def test_it_is_read_only_until_somebody_writes(memfd: int, view: RamView) -> None:
    ram, hva = shared(memfd)
    assert view.add(hva, PAGE) is None
    ours = view.at(hva)
    assert ours is not None
    with pytest.raises(errors.MemoryFault):
        native.write(os.getpid(), ours, b"x")
    writable = view.at(hva + 3, write=True)
    assert writable is not None
    native.write(os.getpid(), writable, b"new")
    assert ram[:6] == b"\0\0\0new"
    assert view.at(hva) == ours


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("anonymous", "it is anonymous memory"),
        ("private", "it is a private mapping of a file (share=off)"),
        ("hole", "the VMM has no memory there"),
        ("beyond", "it is not one mapping of one file"),
        ("short", "its file is shorter than the mapping"),
    ],
)
def test_what_cannot_be_mapped_says_why(memfd: int, view: RamView, kind: str, why: str) -> None:
    nbytes, held = PAGE, []
    if kind == "anonymous":
        ram = mmap.mmap(-1, PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        held, hva = [ram], native.address_of(ram)
    elif kind == "hole":
        hva = PAGE
    else:
        flags = mmap.MAP_PRIVATE if kind == "private" else mmap.MAP_SHARED
        ram, hva = shared(memfd, flags=flags)
        held = [ram]
        if kind == "beyond":
            nbytes = 1 << 46
        if kind == "short":
            os.ftruncate(memfd, PAGE)
    assert view.add(hva, nbytes) == why
    assert view.at(hva) is None
    assert view.extent(hva) == 0
    if kind != "short":  # which shows when it is opened
        assert view.why_not(hva, nbytes) == why
    del held


def test_huge_pages(view: RamView) -> None:
    size = 2 << 20
    try:
        fd = os.memfd_create("huge", os.MFD_CLOEXEC | os.MFD_HUGETLB)
        os.ftruncate(fd, 2 * size)
        ram, hva = shared(fd, 2 * size)
        ram[size : size + 4] = b"huge"
    except OSError as error:
        pytest.skip(f"no huge pages are reserved on this host ({error.strerror})")
    assert view.add(hva + size + PAGE, PAGE) is None  # a part of a page
    ours = view.at(hva + size)
    assert ours is not None
    assert native.read(os.getpid(), ours, 4) == b"huge"
    os.close(fd)


def test_a_file_that_nobody_has_open_any_more(tmp_path: Path, view: RamView) -> None:
    path = tmp_path / "ram"
    path.write_bytes(b"file" * (PAGE // 4))
    fd = os.open(path, os.O_RDWR)
    ram, hva = shared(fd, PAGE)
    ram.close()
    held = native.lib.sk_notify_map  # a mapping that keeps no descriptor, unlike Python's
    out = native.ffi.new("void **")
    assert held(fd, PAGE, out, native.ffi.NULL) == 0
    os.close(fd)
    path.unlink()
    hva = int(native.ffi.cast("uintptr_t", out[0]))
    why = view.add(hva, PAGE)
    if why is None:  # through map_files, with CAP_CHECKPOINT_RESTORE
        ours = view.at(hva)
        assert ours is not None
        assert native.read(os.getpid(), ours, 4) == b"file"
    else:
        assert why.startswith("its file cannot be opened (")
    native.lib.sk_notify_unmap(out[0], PAGE)


def test_a_file_that_lost_pages_is_a_short_read_and_no_signal(memfd: int) -> None:
    _ram, hva = shared(memfd)
    with PlainPort(os.getpid()) as port:
        assert port.show([(hva, NPAGES * PAGE)]) == [None]
        os.ftruncate(memfd, PAGE)
        assert port.readinto(hva, memoryview(bytearray(2 * PAGE))) == PAGE
        assert port.read_pages([hva, hva + PAGE]) == [bytes(PAGE), None]


def test_what_is_not_mapped_is_copied(memfd: int) -> None:
    ram, hva = shared(memfd)
    ram[:5] = b"share"
    private = mmap.mmap(-1, PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    private[:5] = b"alone"
    other = native.address_of(private)
    missed: list[str] = []
    with PlainPort(os.getpid()) as port:
        assert port.show([(hva, PAGE), (other, PAGE)]) == [None, "it is anonymous memory"]
        assert [page and page[:5] for page in port.read_pages([other, hva, PAGE])] == [
            b"alone",
            b"share",
            None,
        ]
        assert port.read(other, 5) == b"alone"
        port.on_hidden = lambda: missed.append("told")
        assert port.operand(hva) is not None
        assert missed == []
        assert [port.operand(other), port.operand(other)] == [None, None]
        assert missed == ["told"]
        port.write(other, b"there")
        port.write(hva, b"here.")
    assert (private[:5], ram[:5]) == (b"there", b"here.")


def test_the_area_is_at_no_address_of_guest_memory() -> None:
    port = MappedVmm(os.getpid(), scratch_nbytes=PAGE)
    first = port.args_hva
    # a guest whose memory happens to be where our area is
    port.show([(first & ~(PAGE - 1), PAGE)])
    assert port.args_hva != first
    port.write(port.args_hva, b"struct")
    assert port.read(port.args_hva, 6) == b"struct"
    port.close()
