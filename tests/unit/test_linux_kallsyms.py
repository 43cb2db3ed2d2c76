"""Symbols out of a compressed table that is built here."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from sevkvm.errors import BadGuestData
from sevkvm.linux.kallsyms import find_symbols
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
