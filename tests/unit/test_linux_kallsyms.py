"""Symbols out of a compressed table that is built here."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sevkvm.errors import BadGuestData
from sevkvm.linux.kallsyms import find_symbols, read_symbols
from tests.support.kallsymsbuild import build

GVA = 0xFFFF_FFFF_8200_0000
BASE = 0xFFFF_FFFF_8100_0000
SYMBOLS = [
    ("T_stext", BASE),
    ("Dpgd_list", BASE + 0x1234),
    ("tpgd_list_more", BASE + 0x20),
    ("Dinit_uts_ns", BASE + 0x5000),
    ("ttwice", BASE + 0x30),
    ("ttwice", BASE + 0x40),
    ("t" + "n" * 300, BASE + 0x50),
    ("Dlast", BASE + 0x7000_0000),
]


class Space:
    """The kernel's memory: the table and nothing else."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def read(self, gva: int, nbytes: int) -> bytes:
        if gva < GVA or gva + nbytes > GVA + len(self.data):
            raise BadGuestData("not mapped")
        return self.data[gva - GVA :][:nbytes]

    def u64(self, gva: int) -> int:
        return int.from_bytes(self.read(gva, 8), "little")


def read(symbols, *, since_615: bool = False, change=None, tail: int = 8192, **note: int):
    data, where = build(symbols, GVA, BASE, since_615=since_615)
    space = Space(data + bytes(tail))
    if change:
        change(space, where)
    known = {"_stext": BASE, "init_uts_ns": BASE + 0x5000} | note
    return read_symbols(space, SimpleNamespace(symbols={**where, **known}))


def find(symbols, *wanted: str, since_615: bool = False, change=None, witness: int = BASE, tail: int = 8192):
    data, where = build(symbols, GVA, BASE, since_615=since_615)
    space = Space(data + bytes(tail))
    if change:
        change(space, where)
    note = SimpleNamespace(symbols={**where, "_stext": witness, "init_uts_ns": BASE + 0x5000})
    return find_symbols(space, note, wanted)


@pytest.mark.parametrize("since_615", [False, True])
def test_addresses_by_name(since_615: bool) -> None:
    names = ("pgd_list", "last", "n" * 300)
    assert find(SYMBOLS, *names, since_615=since_615) == {
        "pgd_list": BASE + 0x1234,
        "last": BASE + 0x7000_0000,
        "n" * 300: BASE + 0x50,
    }


def test_what_is_not_there_or_there_twice_is_left_out() -> None:
    assert find(SYMBOLS, "twice", "nobody", "pgd_lis", "pgd_list_") == {}


def test_more_names_than_one_read_brings() -> None:
    many = [(f"tfunction_number_{number}", BASE + number) for number in range(40_000)]
    assert find([*SYMBOLS[:4], *many], "function_number_39999") == {"function_number_39999": BASE + 39_999}


def test_a_table_that_contradicts_the_note() -> None:
    with pytest.raises(BadGuestData, match="contradicts"):
        find(SYMBOLS, "pgd_list", witness=BASE + 1)


@pytest.mark.parametrize("count", [0, 9, 1 << 20, 1 << 21, 0xFFFF_FFFF])
def test_a_count_that_cannot_be_right(count: int) -> None:
    def change(space: Space, where: dict[str, int]) -> None:
        at = where["kallsyms_num_syms"] - GVA
        space.data = space.data[:at] + count.to_bytes(4, "little") + space.data[at + 4 :]

    with pytest.raises(BadGuestData):
        find(SYMBOLS, "nobody", change=change, witness=0 if count == 9 else BASE, tail=0)


def test_tokens_out_of_order() -> None:
    def change(space: Space, where: dict[str, int]) -> None:
        at = where["kallsyms_token_index"] - GVA
        space.data = space.data[:at] + b"\xff\xff" + space.data[at + 2 :]

    with pytest.raises(BadGuestData, match="order"):
        find(SYMBOLS, "pgd_list", change=change)


def test_a_kernel_whose_note_does_not_know_its_table() -> None:
    with pytest.raises(BadGuestData, match=r"before 6\.0"):
        find_symbols(Space(b""), SimpleNamespace(symbols={}), ["pgd_list"])


@pytest.mark.parametrize("since_615", [False, True])
def test_the_whole_table(since_615: bool) -> None:
    assert [(letter + name, gva) for gva, letter, name in read(SYMBOLS, since_615=since_615)] == SYMBOLS


def test_per_cpu_variables_have_offsets() -> None:
    symbols = [("Acurrent_task", 0x1FB80), *SYMBOLS]
    assert read(symbols)[0] == (0x1FB80, "A", "current_task")


def test_as_many_symbols_as_a_large_kernel_has() -> None:
    many = [(f"tfunction_number_{number}", BASE + number) for number in range(200_000)]
    found = read([*SYMBOLS, *many])
    assert len(found) == len(SYMBOLS) + 200_000
    assert found[-1] == (BASE + 199_999, "t", "function_number_199999")


def test_a_kernel_of_functions_alone_has_one_witness() -> None:
    """Without CONFIG_KALLSYMS_ALL no variable is in the table."""
    functions = [each for each in SYMBOLS if each[0][0] in "tT"]
    assert len(read(functions)) == len(functions)


@pytest.mark.parametrize("note", [{"_stext": BASE + 1}, {"init_uts_ns": BASE}])
def test_one_witness_against_the_table(note: dict[str, int]) -> None:
    with pytest.raises(BadGuestData, match="contradicts"):
        read(SYMBOLS, **note)


def test_a_table_that_no_witness_is_in() -> None:
    with pytest.raises(BadGuestData, match="contradicts"):
        read([("tnobody", BASE)])
    with pytest.raises(BadGuestData, match="contradicts"):
        read([*SYMBOLS, *SYMBOLS])


@pytest.mark.parametrize("name", ["t\x1b[2J", "two words", "tnew\nline", "t\x7f", "t", "t" + "n" * 513])
def test_names_that_no_kernel_has(name: str) -> None:
    with pytest.raises(BadGuestData, match="name"):
        read([*SYMBOLS, (name, BASE)])


def test_names_are_not_blown_up_by_their_tokens() -> None:
    """A byte of a name may stand for 64 KiB."""

    def change(space: Space, where: dict[str, int]) -> None:
        at = where["kallsyms_token_index"] - GVA
        space.data = space.data[: at + 2] + bytes([0xF0, 0xFF] * 255) + space.data[at + 512 :]

    with pytest.raises(BadGuestData, match="longer than any name"):
        read(SYMBOLS, change=change, tail=1 << 17)


@pytest.mark.parametrize(
    "part", ["num_syms", "names", "token_table", "token_index", "offsets", "relative_base"]
)
@pytest.mark.parametrize("gva", [0, GVA - 1, GVA + (1 << 20), (1 << 64) - 1])
def test_a_part_that_is_not_there(part: str, gva: int) -> None:
    with pytest.raises(BadGuestData):
        read(SYMBOLS, **{f"kallsyms_{part}": gva})


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 4000), st.binary(min_size=1, max_size=64))
def test_a_damaged_table_is_refused_or_read_and_nothing_else(at: int, damage: bytes) -> None:
    def change(space: Space, where: dict[str, int]) -> None:
        space.data = space.data[:at] + damage + space.data[at + len(damage) :]

    try:
        found = read(SYMBOLS, change=change)
    except BadGuestData:
        return
    assert all(name.isprintable() and 0 <= gva < 1 << 64 for gva, _, name in found)
