"""Fake physical addresses and the mappings they are made from."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sevkvm import native
from sevkvm.shim.address_space import AddressSpace, AddressSpaces
from sevkvm.shim.spa import SpaMap, Vma, parse_maps

PAGE = mmap.PAGESIZE
MAPS = b"""\
55d0c0000000-55d0c0002000 r--p 00001000 fd:01 131075                     /usr/bin/a program
7f0000000000-7f0000200000 rw-p 00000000 00:00 0
7f0000200000-7f0000201000 ---p 00000000 00:00 0
7f0000300000-7f0000304000 rw-s 00002000 00:01 2061                       /memfd:ram (deleted)
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
"""


def test_maps_are_parsed() -> None:
    program, anonymous, guard, memfd, vsyscall = parse_maps(MAPS)
    assert program == Vma(0x55D0C0000000, 0x55D0C0002000, True, False, False, 0x1000, 0xFD << 20 | 1, 131075)
    assert (anonymous.writable, anonymous.shared, anonymous.inode) == (True, False, 0)
    assert not guard.readable
    assert (memfd.shared, memfd.offset, memfd.inode) == (True, 0x2000, 2061)
    assert vsyscall.end == 0xFFFFFFFFFF601000


def test_shared_memory_is_known_by_its_file_and_private_memory_by_its_place() -> None:
    spas = SpaMap()
    _, anonymous, _, memfd, _ = parse_maps(MAPS)
    elsewhere = Vma(0x1000, 0x5000, True, True, True, 0x1000, memfd.device, memfd.inode)
    assert spas.address(1, memfd, memfd.start + 5) == spas.address(2, elsewhere, 0x2005)
    assert spas.address(1, anonymous, anonymous.start) != spas.address(2, anonymous, anonymous.start)
    assert spas.address(1, anonymous, anonymous.start) % PAGE == 0
    private_file = Vma(memfd.start, memfd.end, True, True, False, 0x2000, memfd.device, memfd.inode)
    assert spas.address(1, private_file, memfd.start) != spas.address(1, memfd, memfd.start)
    assert SpaMap().address(1, memfd, memfd.start) != spas.address(1, memfd, memfd.start)


@pytest.fixture(params=["query", "text"])
def ourselves(request: pytest.FixtureRequest) -> Iterator[AddressSpace]:
    space = AddressSpace(os.getpid(), 1, SpaMap())
    probe = bytearray(1)
    space.backing(native.address_of(probe), 1)
    if request.param == "query" and not space.can_query:
        space.close()
        pytest.skip("this kernel has no PROCMAP_QUERY (Linux 6.11)")
    space.can_query = request.param == "query"
    yield space
    space.close()


def test_backing_of_our_own_memory(ourselves: AddressSpace) -> None:
    fd = os.memfd_create("ram")
    os.ftruncate(fd, 4 * PAGE)
    with (
        mmap.mmap(fd, 4 * PAGE) as first,
        mmap.mmap(fd, 2 * PAGE, offset=2 * PAGE) as second,
        mmap.mmap(fd, PAGE, prot=mmap.PROT_READ) as frozen,
        mmap.mmap(-1, 4 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as private,
    ):
        hva = native.address_of(first)
        (whole,) = ourselves.backing(hva + 100, 3 * PAGE)
        assert (whole.hva, whole.nbytes, whole.writable) == (hva + 100, 3 * PAGE, True)
        (tail,) = ourselves.backing(native.address_of(second), PAGE)
        assert tail.spa == whole.spa - 100 + 2 * PAGE
        number = os.fstat(fd).st_dev
        device = os.major(number) << 20 | os.minor(number)
        address = next(
            vma.start
            for vma in parse_maps(Path("/proc/self/maps").read_bytes())
            if (vma.device, vma.inode) == (device, os.fstat(fd).st_ino) and not vma.writable
        )
        (read_only,) = ourselves.backing(address, 16)
        assert (read_only.spa, read_only.writable) == (whole.spa - 100, False)
        (own,) = ourselves.backing(native.address_of(private), 4 * PAGE)
        assert own.nbytes == 4 * PAGE
        assert frozen[0] == 0
    assert ourselves.backing(0x1000, 16) == []
    os.close(fd)


def test_a_range_ends_where_memory_does(ourselves: AddressSpace) -> None:
    fd = os.memfd_create("ram")
    os.ftruncate(fd, 2 * PAGE)
    area = mmap.mmap(-1, 64 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=0)
    vmas = parse_maps(Path("/proc/self/maps").read_bytes())
    hole = next(vma for vma in vmas if not vma.readable and vma.end - vma.start == 64 * PAGE)
    before = next((vma for vma in vmas if vma.end == hole.start and vma.readable), None)
    assert ourselves.backing(hole.start, PAGE) == []
    if before is not None:
        assert sum(piece.nbytes for piece in ourselves.backing(before.end - 16, 32)) == 16
    area.close()
    os.close(fd)


def test_what_is_kept_is_not_looked_up_again(ourselves: AddressSpace) -> None:
    area = mmap.mmap(-1, 4 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    hva = native.address_of(area)
    before = ourselves.backing(hva, 4 * PAGE)
    ourselves.keep(hva, 4 * PAGE)
    area.close()
    assert ourselves.backing(hva, 4 * PAGE) == before
    (part,) = ourselves.backing(hva + PAGE, 16)
    assert part.spa == before[0].spa + PAGE
    ourselves.release(hva, 4 * PAGE)
    assert ourselves.backing(hva, 4 * PAGE) != before


def test_an_address_space_ends_with_its_process() -> None:
    spaces = AddressSpaces()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writer)
        os.read(reader, 1)
        os._exit(0)
    os.close(reader)
    try:
        ours, theirs = spaces.of(os.getpid()), spaces.of(child)
        assert ours is not None
        assert theirs is not None
        assert theirs is not ours
        assert spaces.of(child) is theirs
        assert theirs.alive()
    finally:
        os.close(writer)
        os.waitpid(child, 0)
    assert not theirs.alive()
    assert spaces.forget_dead() == [theirs]
    assert spaces.of(child) is None
    spaces.close()
