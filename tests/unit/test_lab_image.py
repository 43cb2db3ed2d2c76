"""The lab's guests, read back by a walker and a checker that share no code with their builder."""

from __future__ import annotations

import hashlib
import struct
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sevkvm.errors import UsageError
from sevkvm.lab.demo import DIRECT_GVA, SECRET, SHARED_MESSAGE, DemoOptions, demo_image
from sevkvm.lab.image import Image, Region, Slot, tile
from sevkvm.lab.pattern import pattern

PRESENT, WRITABLE, USER, LARGE, NX = 1, 2, 4, 0x80, 1 << 63
SMALL = 8 << 20


class Leaf(NamedTuple):
    gpa: int
    page_nbytes: int
    private: bool
    writable: bool
    user: bool
    nx: bool
    upper_cbits: tuple[bool, ...]


def walk(image: Image, gva: int) -> Leaf | int:
    """Follow the tables bit by bit; the level where it ends if nothing is mapped."""
    cbit = 0 if image.cbit_pos is None else 1 << image.cbit_pos
    sregs = image.vcpus[0].sregs
    levels = 5 if sregs.cr4 & 1 << 12 else 4
    address = (1 << 52) - 0x1000 & ~cbit
    table, writable, user, nx = sregs.cr3 & address, True, True, False
    uppers = [bool(sregs.cr3 & cbit)]
    for level in range(levels, 0, -1):
        shift = 12 + 9 * (level - 1)
        (entry,) = struct.unpack("<Q", image.plaintext(table + (gva >> shift) % 512 * 8, 8))
        if not entry & PRESENT:
            return level
        writable &= bool(entry & WRITABLE)
        user &= bool(entry & USER)
        nx |= bool(entry & NX)
        if level == 1 or entry & LARGE:
            size = 1 << shift
            gpa = (entry & address & ~(size - 1)) | gva % size
            return Leaf(gpa, size, bool(entry & cbit), writable, user, nx, tuple(uppers))
        uppers.append(bool(entry & cbit))
        table = entry & address
    raise AssertionError("a level-1 entry is a leaf")


def build(levels: int = 4, cbit_pos: int | None = None, pcid: bool = False, nbytes: int = SMALL) -> Image:
    return demo_image(DemoOptions(nbytes, cbit_pos=cbit_pos, levels=levels, pcid=pcid))


@pytest.mark.parametrize("pcid", [False, True])
@pytest.mark.parametrize("cbit_pos", [None, 47, 51])
@pytest.mark.parametrize("levels", [4, 5])
def test_every_expected_mapping_is_in_the_tables(levels: int, cbit_pos: int | None, pcid: bool) -> None:
    image = build(levels, cbit_pos, pcid)
    assert {m.page_nbytes for m in image.mappings} == {1 << 12, 1 << 21, 1 << 30}
    for mapping in image.mappings:
        leaf = walk(image, mapping.gva)
        assert isinstance(leaf, Leaf)
        assert leaf[:6] == (
            mapping.gpa,
            mapping.page_nbytes,
            mapping.private,
            mapping.writable,
            mapping.user,
            mapping.nx,
        )
        assert set(leaf.upper_cbits) == {cbit_pos is not None}


@pytest.mark.parametrize("levels", [4, 5])
def test_every_expected_miss_ends_at_its_level(levels: int) -> None:
    image = build(levels, 51)
    assert [walk(image, miss.gva) for miss in image.misses] == [miss.level for miss in image.misses]
    assert {miss.level for miss in image.misses} == {1, 2, 3, 4}


def test_the_tables_hold_no_leaf_but_the_expected_ones() -> None:
    image = build(5, 51)
    found = set()

    def list_leaves(table: int, level: int, gva: int) -> None:
        for index, entry in enumerate(struct.unpack("<512Q", image.plaintext(table, 4096))):
            here = gva | index << 12 + 9 * (level - 1)
            if entry & PRESENT and (level == 1 or entry & LARGE):
                found.add(here | (0xFE << 56 if here >> 56 & 1 else 0))
            elif entry & PRESENT:
                list_leaves(entry & (1 << 51) - 0x1000, level - 1, here)

    list_leaves(image.vcpus[0].sregs.cr3 & (1 << 51) - 0x1000, 5, 0)
    assert found == {mapping.gva for mapping in image.mappings}


@pytest.mark.parametrize("cbit_pos", [47, 51])
@pytest.mark.parametrize("levels", [4, 5])
def test_a_cbit_guest_is_the_plain_guest_with_the_bit_set(levels: int, cbit_pos: int) -> None:
    plain, sealed = build(levels), build(levels, cbit_pos)
    cbit = 1 << cbit_pos
    assert sealed.vcpus[0].sregs.cr3 == plain.vcpus[0].sregs.cr3 | cbit
    differing = 0
    for slot in plain.slots:
        before, after = (image.plaintext(slot.gpa, slot.nbytes) for image in (plain, sealed))
        if before == after:
            continue
        words = zip(memoryview(before).cast("Q"), memoryview(after).cast("Q"), strict=True)
        for old, new in words:
            if old != new:
                assert new == old | cbit
                differing += 1
    shared_leaves = sum(1 for m in sealed.mappings if not m.private)
    assert shared_leaves == 3
    assert differing > len(sealed.mappings) - shared_leaves


def test_the_rights_of_upper_entries_count() -> None:
    image = build()
    rom, stack = (next(m for m in image.mappings if m.gpa == gpa) for gpa in (0xFFFF0000, 0x103000))
    assert not rom.writable
    stack_leaves = [m for m in image.mappings if m.gpa == 0x103000 and m.user]
    assert [m.nx for m in stack_leaves] == [True]
    assert stack.writable


def test_known_contents_are_where_the_landmarks_say() -> None:
    image = build(cbit_pos=51)
    secret, shared = image.landmark("secret"), image.landmark("shared")
    assert secret.gva == DIRECT_GVA + 0x100000
    assert image.plaintext(secret.gpa, secret.nbytes) == SECRET
    assert image.plaintext(shared.gpa, shared.nbytes) == SHARED_MESSAGE
    random_page = image.landmark("random")
    assert (
        hashlib.sha256(image.plaintext(random_page.gpa, random_page.nbytes)).hexdigest()
        == "3d82f1490237d1dca7adce6318f04781051919346963044c7a8945879b0ccfe0"
    )
    for landmark in image.landmarks:
        leaf = walk(image, landmark.gva)
        assert isinstance(leaf, Leaf)
        assert leaf.gpa == landmark.gpa


def test_every_block_of_the_pattern_says_its_address() -> None:
    pages = pattern(0x12345000, 0x2000)
    for offset in range(0, 0x2000, 16):
        assert pages[offset : offset + 16] == f"gpa=0x{0x12345000 + offset:010x}".encode()
    with pytest.raises(ValueError, match="whole pages"):
        pattern(0x10, 0x1000)


def test_the_regions_tile_all_memory_and_only_shared_ones_are_not_private() -> None:
    image = build(cbit_pos=51)
    assert sum(slot.nbytes for slot in image.slots if not slot.readonly) == SMALL
    for slot in image.slots:
        assert all(region is not None for _, _, region in image.pieces(slot.gpa, slot.nbytes))
    shared = {(r.gpa, r.nbytes) for r in image.regions if not r.private}
    assert shared == {(0x104000, 0x1000), (0x400000, 0x200000)}


@given(st.integers(0, 0x5FFFFF), st.integers(1, 0x3000))
def test_any_cut_of_the_plaintext_is_that_cut(gpa: int, nbytes: int) -> None:
    nbytes = min(nbytes, 0x600000 - gpa)
    assert _IMAGE.plaintext(gpa, nbytes) == _LOW[gpa : gpa + nbytes]


_IMAGE = build(cbit_pos=47)
_LOW = _IMAGE.plaintext(0, 0x600000)


def test_memory_in_no_region_reads_as_zeros() -> None:
    slots = (Slot(0, 0x4000, "ram"),)
    image = Image(slots, (Region(0x1000, 0x1000, True, b"x" * 0x1000),), (), None)
    assert image.plaintext(0x0FFE, 4) == b"\0\0xx"
    assert image.plaintext(0x1FFF, 2) == b"x\0"
    assert image.sha256(slots[0]) == hashlib.sha256(bytes(4096) + b"x" * 4096 + bytes(8192)).hexdigest()


@pytest.mark.parametrize(
    ("regions", "why"),
    [
        ([Region(0x1000, 0x2000, True), Region(0x2000, 0x1000, True)], "overlap"),
        ([Region(0x3000, 0x2000, True)], "one slot"),
        ([Region(0x800, 0x1000, True)], "whole pages"),
        ([Region(0x1000, 0, True)], "whole pages"),
        ([Region(0x1000, 0x1000, True, b"short")], "data"),
    ],
)
def test_regions_that_make_no_sense_are_refused(regions: list[Region], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Image((Slot(0, 0x4000, "ram"),), tuple(regions), (), None)


def test_tiling_keeps_the_placed_regions() -> None:
    placed = Region(0x2000, 0x1000, False, bytes(0x1000))
    tiles = tile([Slot(0, 0x4000, "ram")], [placed])
    assert [(t.gpa, t.nbytes, t.private) for t in tiles] == [
        (0, 0x2000, True),
        (0x2000, 0x1000, False),
        (0x3000, 0x1000, True),
    ]


@pytest.mark.parametrize(("nbytes", "cbit_pos"), [(3 << 20, None), (0, None), (1 << 40, None), (SMALL, 30)])
def test_impossible_guests_are_usage_errors(nbytes: int, cbit_pos: int | None) -> None:
    with pytest.raises(UsageError):
        demo_image(DemoOptions(nbytes, cbit_pos=cbit_pos))


def test_the_program_of_a_guest_that_is_alive_is_what_it_says() -> None:
    capstone = pytest.importorskip("capstone")
    image = demo_image(DemoOptions(SMALL, alive=True, vcpus=2))
    still = demo_image(DemoOptions(SMALL, vcpus=2))
    entry = image.vcpus[1].regs.rip
    assert (entry, still.vcpus[1].regs.rip) == (0xFFFFFFFF81001000, 0xFFFFFFFF81000000)
    assert image.regions == still.regions  # nothing but where they begin
    code = image.plaintext(0x201000, 0x3B)
    told = [
        f"{each.mnemonic} {each.op_str}".strip()
        for each in capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64).disasm(code, entry)
    ]
    assert told == [
        "cli",
        "mov rbx, rcx",
        "shr rbx, 0x20",
        "movzx ebx, bl",
        "movabs rdi, 0xffff888000105000",
        "lea rdi, [rdi + rbx*8]",
        "movabs rsi, 0xffff888000104e00",
        "lea rsi, [rsi + rbx*8]",
        "mov ecx, 0x3e9",
        "lock inc qword ptr [rdi]",
        "lock not qword ptr [rsi]",
        "dec ecx",
        "jne 0xffffffff8100102c",
        "hlt",
        "jmp 0xffffffff81001027",
    ]
    assert [init.regs.rcx >> 32 & 0xFF for init in image.vcpus] == [0, 1]
