"""Sealing, on tables written entry by entry: two processes, a look-alike, devices, large pages."""

from __future__ import annotations

import struct

import pytest

from sevkvm.errors import BadGuestData
from sevkvm.lab.seal import find_roots, seal, translate

RAM_NBYTES = 4 << 20
PRIVATE = ((0, 0xA0000), (0x100000, RAM_NBYTES))
TABLE, USER_TABLE = 0x063, 0x067
NX = 1 << 63

KERNEL_PDPT, KERNEL_PD, KERNEL_PT = 0x101000, 0x102000, 0x103000
INIT, SHELL, LOOKALIKE = 0x110000, 0x120000, 0x130000
EMPTY = 0x170000


def plain_ram() -> bytearray:
    ram = bytearray(RAM_NBYTES)

    def put(table: int, index: int, entry: int) -> None:
        struct.pack_into("<Q", ram, table + 8 * index, entry)

    put(KERNEL_PDPT, 0, KERNEL_PD | TABLE)
    put(KERNEL_PD, 0, KERNEL_PT | TABLE)
    put(KERNEL_PD, 1, 0x201000 | 0x1E3 | NX)  # 2 MiB of RAM; bit 12 is PAT here, no address
    put(KERNEL_PD, 2, 0xFEC00000 | 0x1E3)  # 2 MiB of devices
    put(KERNEL_PT, 0, 0x9F000 | 0x163)  # the last page of low RAM
    put(KERNEL_PT, 1, 0xA0000 | 0x163)  # video memory
    put(KERNEL_PT, 2, 0xFEE00000 | 0x173)
    put(KERNEL_PT, 3, 0x150000 | 0x162)  # not present
    for root in (INIT, SHELL):
        put(root, 511, KERNEL_PDPT | TABLE)
        for level in range(3):
            put(root + 0x1000 * level, 0, root + 0x1000 * (level + 1) | USER_TABLE)
        put(root + 0x3000, 5, root + 0x8000 | 0x867 | NX)
    put(SHELL, 511, KERNEL_PDPT | TABLE | 0x20)  # its copy has been walked
    put(INIT, 511, KERNEL_PDPT | TABLE & ~0x20)
    put(LOOKALIKE, 511, KERNEL_PDPT | TABLE)
    put(LOOKALIKE, 0, 0xDEAD_BEEF_F00D_F00D | 1)
    return ram


def entry(ram: bytearray, table: int, index: int) -> int:
    value = struct.unpack_from("<Q", ram, table + 8 * index)[0]
    assert isinstance(value, int)
    return value


@pytest.mark.parametrize("cbit_pos", [47, 51])
def test_exactly_the_right_bits_are_set(cbit_pos: int) -> None:
    ram, cbit = plain_ram(), 1 << cbit_pos
    before = bytes(ram)
    result = seal(memoryview(ram), INIT, levels=4, cbit_pos=cbit_pos, private_ranges=PRIVATE)

    private = [(KERNEL_PDPT, 0), (KERNEL_PD, 0), (KERNEL_PD, 1), (KERNEL_PT, 0)]
    for root in (INIT, SHELL):
        private += [(root, 511), *((root + 0x1000 * level, 0) for level in range(3)), (root + 0x3000, 5)]
    expected = bytearray(before)
    for table, index in private:
        struct.pack_into("<Q", expected, table + 8 * index, entry(expected, table, index) | cbit)
    assert ram == expected
    assert result.roots == [INIT, SHELL]
    assert result.rejected == [LOOKALIKE]
    assert (result.private_entries, result.shared_leaves) == (len(private), 3)
    assert result.tables[INIT] == 4
    assert result.tables[SHELL + 0x3000] == 1


def test_translations_with_the_cbit_taken_off() -> None:
    ram = plain_ram()
    seal(memoryview(ram), INIT, levels=4, cbit_pos=51, private_ranges=PRIVATE)
    view = memoryview(ram)
    assert translate(view, INIT, 4, 0x5123, 51) == INIT + 0x8123
    assert translate(view, SHELL, 4, 0x5123, 51) == SHELL + 0x8123
    assert translate(view, SHELL, 4, 0xFFFFFF80_00234567, 51) == 0x234567  # 2 MiB page, PAT bit dropped
    assert translate(view, SHELL, 4, 0xFFFFFF80_00003000, 51) is None
    assert translate(view, SHELL, 4, 0xFFFFFF80_00002000, 51) is None  # a device, not RAM


def test_roots_are_found_by_the_kernels_half() -> None:
    assert find_roots(memoryview(plain_ram()), SHELL) == [INIT, SHELL, LOOKALIKE]


def test_a_top_table_without_a_kernel_is_refused() -> None:
    ram = plain_ram()
    with pytest.raises(BadGuestData, match="maps no kernel"):
        seal(memoryview(ram), EMPTY, levels=4, cbit_pos=51, private_ranges=PRIVATE)
    assert ram == plain_ram()


def test_a_vcpus_own_tables_must_be_right_and_nothing_is_written_otherwise() -> None:
    ram = plain_ram()
    with pytest.raises(BadGuestData, match="entry 0x"):
        seal(memoryview(ram), LOOKALIKE, levels=4, cbit_pos=51, private_ranges=PRIVATE)
    assert ram == plain_ram()


def test_a_page_at_two_levels_is_not_a_table() -> None:
    ram = plain_ram()
    struct.pack_into("<Q", ram, INIT + 0x2000 + 8, INIT | USER_TABLE)  # a loop back to the root
    with pytest.raises(BadGuestData, match="of level 4 and of level 1"):
        seal(memoryview(ram), INIT, levels=4, cbit_pos=51, private_ranges=PRIVATE)
