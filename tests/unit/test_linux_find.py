"""A kernel found in memory alone: what is found, what it costs, and who is not believed."""

from __future__ import annotations

import struct
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sevkvm.errors import BadGuestData
from sevkvm.linux import pointers
from sevkvm.linux.find import find_kernel, find_note
from sevkvm.linux.ram import CHUNK_NBYTES, Search
from sevkvm.linux.sweep import order
from sevkvm.memory.source import Slot, SlotMap
from sevkvm.paging.form import PagingForm, PagingMode
from tests.support.fakekernel import DIRECT_MAP, PAGE, STACK_END, FakeKernel, FakeRam, elf_note

MIB = 1 << 20
NOTE = 0x12_3000


@pytest.fixture(params=[(4, None), (4, 51), (5, 47), (4, 47)], ids=["plain", "4-c51", "5-c47", "4-c47"])
def case(request: pytest.FixtureRequest) -> tuple[int, int | None]:
    levels, cbit = request.param
    return levels, cbit


def found(ram: FakeRam) -> tuple[PagingForm | None, int | None]:
    kernel = find_kernel(Search(ram, ram.cbit))
    return (kernel.form, kernel.info.gpa if kernel.info else None) if kernel else (None, None)


def form(kernel: FakeKernel, levels: int, cbit: int | None) -> PagingForm:
    return PagingForm(PagingMode(levels), kernel.root_gpa, cbit)


def test_by_the_first_stack(case: tuple[int, int | None]) -> None:
    levels, cbit = case
    ram = FakeRam(32 * MIB, cbit)
    kernel = ram.add_kernel(data_gpa=8 * MIB, note_gpa=NOTE, levels=levels)
    search = Search(ram, cbit)
    result = find_kernel(search)
    assert result is not None
    assert result.form == form(kernel, levels, cbit)
    assert result.info is not None
    assert (result.info.gpa, result.info.text.encode()) == (NOTE, kernel.text)
    # 16 samples, one chunk with the top table in it, 3.5 MiB of data, head and text of the note
    assert search.pages == len(ram.pages_peeked) == 16 + 128 + 896 + 2
    assert search.refused == []


def test_by_the_note_where_the_image_is_laid_out_otherwise(case: tuple[int, int | None]) -> None:
    levels, cbit = case
    ram = FakeRam(32 * MIB, cbit)
    kernel = ram.add_kernel(data_gpa=8 * MIB, note_gpa=NOTE, levels=levels, stack=False)
    search = Search(ram, cbit)
    result = find_kernel(search)
    assert result is not None
    assert (result.form, result.info is not None) == (form(kernel, levels, cbit), True)
    assert search.pages == len(ram.pages_peeked) == 16 + 3 * 128 + 1


def test_by_the_bare_text_where_there_is_no_note() -> None:
    ram = FakeRam(32 * MIB, 51)
    kernel = ram.add_kernel(data_gpa=8 * MIB, bare_gpa=NOTE, stack=False)
    assert found(ram) == (form(kernel, 4, 51), NOTE)


def test_the_note_before_the_bare_text() -> None:
    for stack in (True, False):
        ram = FakeRam(32 * MIB, 51)
        ram.add_kernel(data_gpa=8 * MIB, note_gpa=0x130000, bare_gpa=NOTE, stack=stack)
        assert found(ram)[1] == 0x130000


def test_tables_without_a_note_are_proof_enough_but_a_note_is_better() -> None:
    ram = FakeRam(64 * MIB, 51)
    kernel = ram.add_kernel(data_gpa=8 * MIB)
    assert found(ram) == (form(kernel, 4, 51), None)
    ours = ram.add_kernel(data_gpa=40 * MIB, note_gpa=NOTE)
    assert found(ram) == (form(ours, 4, 51), NOTE)


def test_two_kernels_are_named_and_neither_is_chosen() -> None:
    for stack in (True, False):
        ram = FakeRam(64 * MIB, 51)
        one = ram.add_kernel(data_gpa=8 * MIB, note_gpa=NOTE, release="one", stack=stack)
        two = ram.add_kernel(data_gpa=40 * MIB, note_gpa=NOTE + 2 * PAGE, release="two", stack=stack)
        with pytest.raises(BadGuestData) as caught:
            find_kernel(Search(ram, 51))
        assert f"one at gpa {one.root_gpa:#x}" in caught.value.message
        assert f"two at gpa {two.root_gpa:#x}" in caught.value.message
        assert "--cr3" in (caught.value.help or "")


def test_a_vcpus_tables_lead_to_the_note(case: tuple[int, int | None]) -> None:
    levels, cbit = case
    ram = FakeRam(32 * MIB, cbit)
    kernel = ram.add_kernel(data_gpa=8 * MIB, note_gpa=NOTE, levels=levels)
    search = Search(ram, cbit)
    info = find_note(search, [form(kernel, levels, cbit)])
    assert info is not None
    assert info.gpa == NOTE
    assert search.pages == len(ram.pages_peeked) == 896 + 2


def test_with_a_vcpus_tables_another_kernels_note_does_not_count() -> None:
    ram = FakeRam(64 * MIB, 51)
    ours = ram.add_kernel(data_gpa=8 * MIB, note_gpa=0x80_0000 - 2 * PAGE, pointers=False)
    old_gva = 0xFFFF_FFFF_8820_0000
    old = ram.add_kernel(data_gpa=40 * MIB, note_gpa=NOTE, data_gva=old_gva, release="old")
    for kernel, note in ((ours, 0x80_0000 - 2 * PAGE), (old, NOTE)):
        info = find_note(Search(ram, 51), [form(kernel, 4, 51)])
        assert info is not None
        assert info.gpa == note


def test_what_maps_no_kernel_is_not_searched() -> None:
    ram = FakeRam(32 * MIB)
    ram.add_kernel(data_gpa=8 * MIB, note_gpa=NOTE)
    empty = PagingForm(PagingMode.LEVEL4, 0x5000)
    assert find_note(Search(ram, None), [empty]) is None
    assert ram.pages_peeked == []


def test_the_user_half_of_isolated_tables() -> None:
    ram = FakeRam(32 * MIB)
    kernel = ram.add_kernel(data_gpa=8 * MIB, note_gpa=NOTE)
    # they are two pages, the kernel's at an even one; the one of user mode maps no kernel data
    assert kernel.root_gpa % (2 * PAGE) == 0
    ram.put(kernel.root_gpa + 0x40_0000, bytes(ram.ram[kernel.root_gpa : kernel.root_gpa + PAGE]))
    user = PagingForm(PagingMode.LEVEL4, kernel.root_gpa + 0x40_1000)
    info = find_note(Search(ram, None), [user])
    assert info is not None
    assert info.gpa == NOTE


DECOYS = ("root", "levels", "release", "no-uts", "phys-base", "sealed", "outside", "unaligned")


@pytest.mark.parametrize("what", DECOYS)
def test_a_note_that_lies_is_refused_and_the_search_goes_on(what: str) -> None:
    ram = FakeRam(32 * MIB, 51)
    kernel = ram.add_kernel(data_gpa=8 * MIB, note_gpa=0x14_0000, stack=False)
    text = kernel.text.decode()
    swapper = text.partition("swapper_pg_dir)=")[2].partition("\n")[0]
    base = int(text.partition("phys_base)=")[2].partition("\n")[0])
    change = {
        "root": (swapper, f"{int(swapper, 16) + PAGE:x}"),
        "levels": ("l5_enabled)=0", "l5_enabled)=1"),
        "release": ("6.1.0-fake", "6.2.0-fake"),
        "no-uts": ("SYMBOL(init_uts_ns)", "SYMBOL(other)"),
        "phys-base": (str(base), str(base + 2 * MIB)),
        "sealed": ("", ""),
        "outside": (str(base), str(base + (1 << 40))),
        "unaligned": (swapper, f"{int(swapper, 16) + 8:x}"),
    }[what]
    decoy = text.replace(*change).encode() if what != "sealed" else kernel.text
    if what == "sealed":  # a whole kernel of before encryption was on
        plain = FakeRam(32 * MIB)
        old = plain.add_kernel(data_gpa=16 * MIB, stack=False)
        ram.put(16 * MIB, bytes(plain.ram[16 * MIB : 20 * MIB]))
        decoy = old.text
    ram.put(NOTE, elf_note(decoy))
    search = Search(ram, 51)
    result = find_kernel(search)
    assert result is not None
    assert result.form == form(kernel, 4, 51)
    assert result.info is not None
    assert result.info.gpa == 0x14_0000
    assert search.refused_count == len(search.refused) == 1
    assert f"{NOTE:#x}" in search.refused[0]


def test_stacks_without_tables_cost_little_and_are_told() -> None:
    ram = FakeRam(64 * MIB, 51)
    kernel = ram.add_kernel(data_gpa=32 * MIB, note_gpa=NOTE)
    ram.put(4 * MIB, STACK_END)
    search = Search(ram, 51)
    result = find_kernel(search)
    assert result is not None
    assert result.form == form(kernel, 4, 51)
    assert len(search.refused) == 1
    assert search.pages == 32 + 512 + 128 + 896 + 2


@pytest.mark.parametrize(("real", "taken"), [(51, None), (47, 51), (51, 47)])
def test_another_cbit_is_named(real: int, taken: int | None) -> None:
    ram = FakeRam(32 * MIB, real)
    ram.add_kernel(data_gpa=8 * MIB, note_gpa=NOTE)
    search = Search(ram, taken)
    assert find_kernel(search) is None
    assert f"unless the C-bit is bit {real}" in search.refused[0]


def test_a_kernel_mapped_in_too_many_pieces_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pointers, "_PIECES_MAX", 2000)
    ram = FakeRam(32 * MIB)
    kernel = ram.add_kernel(data_gpa=8 * MIB, note_gpa=NOTE, pointers=False)
    # all 1 GiB of the image by 4 KiB pages, through one table of level 1
    upper = int.from_bytes(ram.ram[kernel.root_gpa + 511 * 8 :][:8], "little") & ~0xFFF
    middle = int.from_bytes(ram.ram[upper + 510 * 8 :][:8], "little") & ~0xFFF
    ram.put(30 * MIB, struct.pack("<512Q", *(20 * MIB + 2 * PAGE * (at % 2) | 3 for at in range(512))))
    ram.put(middle, struct.pack("<512Q", *[30 * MIB | 3] * 512))
    search = Search(ram, None)
    assert list(pointers.notes(search, form(kernel, 4, None))) == []
    assert search.pages == 2000
    assert any("more pieces" in why for why in search.refused)


ENTRY = st.one_of(st.integers(0, 2**64 - 1), st.integers(0, 2047).map(lambda page: page * PAGE | 3))


@settings(max_examples=30)
@given(
    st.lists(st.lists(ENTRY, min_size=1, max_size=8), min_size=1, max_size=6), st.sampled_from([None, 47, 51])
)
def test_hostile_tables_behind_a_stack(tables: list[list[int]], cbit: int | None) -> None:
    ram = FakeRam(8 * MIB, cbit)
    ram.put(4 * MIB, STACK_END)
    for number, entries in enumerate(tables):
        words = [0] * 512
        for at, entry in enumerate(entries):
            words[511 - 100 * at % 512] = entry | ram_cbit(cbit) | 1
        ram.put(4 * MIB + (number + 1) * PAGE, struct.pack("<512Q", *words))
    search = Search(ram, cbit)
    assert find_kernel(search) is None
    assert search.pages == len(ram.pages_peeked) <= 2 * 8 * MIB // PAGE


def ram_cbit(cbit: int | None) -> int:
    return 0 if cbit is None else 1 << cbit


def test_many_false_tops_are_bounded() -> None:
    ram = FakeRam(8 * MIB)
    ram.put(2 * MIB, STACK_END)
    top = bytearray(PAGE)
    struct.pack_into("<QQ", top, 510 * 8, 0x3001, 0x3001)
    for gpa in range(2 * MIB + PAGE, 4 * MIB, PAGE):
        ram.put(gpa, top)
    search = Search(ram, None)
    assert find_kernel(search) is None
    assert "more tables" in search.refused[0]


def test_many_false_stacks_are_bounded() -> None:
    ram = FakeRam(600 * MIB)
    for gpa in range(0, 600 * MIB, 2 * MIB):
        ram.put(gpa, STACK_END)
    ram.slots = SlotMap(Slot(gpa, PAGE, 0x1000_0000 + gpa) for gpa in range(0, 600 * MIB, 2 * MIB))
    search = Search(ram, None)
    assert find_kernel(search) is None
    assert search.refused_count == 256 + 1
    assert search.pages == 257 + 256 + 300


def test_the_limit_is_kept_and_told() -> None:
    ram = FakeRam(64 * MIB, 51)
    ram.add_kernel(data_gpa=8 * MIB, note_gpa=63 * MIB, stack=False)
    told: list[tuple[int, int]] = []
    search = Search(ram, 51, 4096, lambda done, limit: told.append((done, limit)))
    assert find_kernel(search) is None
    assert not search.searched_all
    assert 4096 - CHUNK_NBYTES // PAGE < search.pages == len(ram.pages_peeked) <= 4096
    assert told[-1] == (search.pages, 4096)
    assert find_kernel(Search(ram, 51)) is not None


def test_what_cannot_be_read_is_stepped_over_and_told() -> None:
    ram = FakeRam(64 * MIB, 51, holes=[(20 * MIB, 24 * MIB)])
    kernel = ram.add_kernel(data_gpa=8 * MIB, note_gpa=30 * MIB, stack=False)
    ram.bad_pages = {0x3000, *range(0x20_0000, 0x50_0000, PAGE)}
    search = Search(ram, 51)
    result = find_kernel(search)
    assert result is not None
    assert result.form == form(kernel, 4, 51)
    assert (0x3000, 0x4000) in search.unreadable
    assert any(start == 0x20_0000 and end >= 0x50_0000 for start, end in search.unreadable)
    attempts = [gpa for gpa, _ in ram.peeks if 0x20_0000 <= gpa < 0x50_0000]
    assert len(attempts) < 16


def test_reads_are_large() -> None:
    ram = FakeRam(64 * MIB, 51)
    ram.add_kernel(data_gpa=8 * MIB, note_gpa=60 * MIB, stack=False)
    assert find_kernel(Search(ram, 51)) is not None
    assert sum(nbytes > PAGE for _, nbytes in ram.peeks) <= 64 * MIB // CHUNK_NBYTES + 2
    assert len(ram.peeks) <= 64 * MIB // CHUNK_NBYTES + 32 + 2


def test_ram_is_read_once_and_the_likely_places_first() -> None:
    gib = 1 << 30
    slots = SlotMap(
        [
            Slot(0, 0xA_0000, 0x10_0000),
            Slot(0x10_0000, 2 * gib - 0x10_0000, 0x1000_0000),
            Slot(0xFFC0_0000, 0x40_0000, 0x9000_0000, readonly=True),
            Slot(4 * gib, 8 * gib, 0x1_0000_0000),
        ]
    )
    ranges = order(slots)
    assert ranges[0] == (0, 0xA_0000)
    assert ranges[2] == (4 * gib, 4 * gib + 64 * MIB)
    assert ranges[3] == (12 * gib - 128 * MIB, 12 * gib)
    assert ranges[4] == (2 * gib - 128 * MIB, 2 * gib)
    flat = sorted(ranges)
    assert all(end <= start for (_, end), (start, _) in pairwise(flat))
    assert sum(end - start for start, end in flat) == 10 * gib - 0x6_0000


def test_pointers_to_the_end_of_ram_and_beyond() -> None:
    ram = FakeRam(32 * MIB)
    kernel = ram.add_kernel(data_gpa=8 * MIB, note_gpa=NOTE)
    base = DIRECT_MAP[4]
    ram.put(
        8 * MIB + 0x20_0000, struct.pack("<3Q", base + 32 * MIB - PAGE, base + 32 * MIB, base + (1 << 46))
    )
    ram.put(32 * MIB - PAGE, elf_note(b"OSRELEASE=cut short by the end of RAM\n" * 110)[:PAGE])
    assert found(ram) == (form(kernel, 4, None), NOTE)


_KERNEL_WORDS = st.sampled_from(
    [0xFFFF_8880_0000_0000, 0xFF11_0000_0000_0000, 0xFFFF_FFFF_8000_0000, 0, 1 << 63]
)


@given(
    st.lists(
        st.builds(int.__or__, _KERNEL_WORDS, st.sampled_from([0, 1, 0x10, 0x100, 0x1000, 0x8000, 0x3_F000])),
        max_size=50,
    ),
    st.binary(max_size=7),
)
def test_page_pointers_are_those_that_a_loop_finds(words: list[int], tail: bytes) -> None:
    data = struct.pack(f"<{len(words)}Q", *words) + tail
    expected = [word for word in words if word % 4096 == 0 and 0xFF << 56 <= word < 0xFFFF_FFFF_8000_0000]
    assert list(pointers.page_pointers(data)) == expected
