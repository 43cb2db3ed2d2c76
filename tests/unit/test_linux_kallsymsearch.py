"""The symbol table of a kernel that does not say where it is: built here, found by its shape, hidden and damaged."""

from __future__ import annotations

import struct
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sevkvm.errors import BadGuestData
from sevkvm.linux import kallsymsearch, kallsymsshape
from sevkvm.linux.kallsyms import find_symbols, read_symbols
from sevkvm.linux.kallsymsearch import search_table
from sevkvm.linux.space import KernelSpace
from sevkvm.paging.form import PagingForm, PagingMode
from tests.support.fakekernel import FakeRam
from tests.support.kallsymsbuild import build_old
from tests.support.tables import MIB2, TABLE, Tables

CBIT = 51
STEXT = 0xFFFF_FFFF_9E00_0000
CODE_NBYTES = MIB2
DATA = STEXT + CODE_NBYTES
NBYTES = 4 * MIB2
# Not aligned to a chunk of the search, and the alphabet lies over the end of one.
TABLE_GVA = DATA + (1 << 20) + 0x7_0000
SYMBOLS = [
    ("Apercpu", 0x1000),
    ("T_stext", STEXT),
    *((f"tfunction_{number}", STEXT + 16 + number) for number in range(3000)),
    ("Dinit_uts_ns", STEXT + NBYTES),
]


class Kernel:
    """RAM of 16 MiB, code and then data from gpa 0 up."""

    def __init__(self, *, executable: bool = True) -> None:
        self.ram = FakeRam(16 << 20, CBIT)
        tables = Tables(mode=4, cbit=CBIT, next_gpa=12 << 20)
        for offset in range(0, NBYTES, MIB2):
            tables.map(STEXT + offset, offset, MIB2, nx=bool(offset) or not executable)
        for gpa, entries in tables.pages.items():
            self.ram.put(gpa, TABLE.pack(*entries))
        self.space = KernelSpace(self.ram, PagingForm(PagingMode.LEVEL4, tables.root, CBIT))
        self.info = SimpleNamespace(symbols={"_stext": STEXT, "init_uts_ns": STEXT + NBYTES})

    def put(self, gva: int, data: bytes) -> None:
        self.ram.put(gva - STEXT, data)

    def search(self) -> dict[str, int] | None:
        return search_table(self.space, self.info)


@pytest.fixture(scope="module")
def table() -> tuple[bytes, dict[str, int]]:
    data, where = build_old(SYMBOLS, TABLE_GVA, STEXT)
    assert len({(where["token_table"] + part) // kallsymsearch._CHUNK_NBYTES for part in (0, 0x600)}) == 1
    del where["markers"]
    return data, where


@pytest.mark.parametrize("marker_code", ["I", "Q"], ids=["since-5.0", "before"])
def test_it_is_found_and_read(marker_code: str) -> None:
    kernel = Kernel()
    data, where = build_old(SYMBOLS, TABLE_GVA, STEXT, marker_code=marker_code)
    kernel.put(TABLE_GVA, data)
    assert kernel.search() == {name: gva for name, gva in where.items() if name != "markers"}
    assert [(letter + name, gva) for gva, letter, name in read_symbols(kernel.space, kernel.info)] == SYMBOLS
    with pytest.raises(BadGuestData, match=r"before 6\.0"):
        find_symbols(kernel.space, kernel.info, ["_stext"])


@pytest.mark.parametrize("shift", range(-56, 8, 8))
def test_an_alphabet_over_the_end_of_a_chunk(shift: int) -> None:
    kernel = Kernel()
    _, where = build_old(SYMBOLS, 0, STEXT)
    letters = where["token_table"] + len("longest\0") + 2 * (ord("a") - 1)
    gva = DATA + 2 * kallsymsearch._CHUNK_NBYTES + shift - letters // 8 * 8
    data, where = build_old(SYMBOLS, gva, STEXT)
    kernel.put(gva, data)
    found = kernel.search()
    assert found is not None
    assert found["names"] == where["names"]


def test_code_is_not_searched(table: tuple[bytes, dict[str, int]]) -> None:
    for executable in (True, False):
        kernel = Kernel(executable=executable)
        kernel.put(STEXT + 0x1000, table[0])
        assert (kernel.search() is None) == executable


def test_letters_that_are_not_tokens_come_first(table: tuple[bytes, dict[str, int]]) -> None:
    kernel = Kernel()
    for number in range(10):
        kernel.put(DATA + 0x1000 * number, "ABCabcdefghijklmnopqrstuvwxyz".encode("utf-16-le"))
    kernel.put(TABLE_GVA, table[0])
    assert kernel.search() == table[1]


def test_no_table_and_no_witness() -> None:
    kernel = Kernel()
    assert kernel.search() is None
    with pytest.raises(BadGuestData, match="was found in its memory"):
        read_symbols(kernel.space, kernel.info)
    for symbols in ({}, {"_stext": STEXT}, {"_stext": STEXT, "init_uts_ns": STEXT - 1}):
        kernel.info.symbols = symbols
        assert kernel.search() is None


def test_an_image_that_is_too_large_is_not_read_to_its_end(table: tuple[bytes, dict[str, int]]) -> None:
    kernel = Kernel()
    kernel.put(TABLE_GVA, table[0])
    kernel.info.symbols["init_uts_ns"] = (1 << 64) - 1
    assert kernel.search() == table[1]


def test_counts_that_lead_to_names_without_end_are_given_up(
    table: tuple[bytes, dict[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tens of thousands of places that look like the start of a million names each."""
    taken = []
    real = kallsymsshape._fits

    def counted(data: bytes, start: int, nsymbols: int) -> tuple[bool, int]:
        answer = real(data, start, nsymbols)
        taken.append(answer[1])
        return answer

    monkeypatch.setattr(kallsymsshape, "_fits", counted)
    monkeypatch.setattr(kallsymsshape, "_STEPS_MAX", 50_000)
    kernel = Kernel()
    data, where = table
    trap = struct.pack("<QQ", STEXT + 0x0101_0101, 0x0101_0101 & 0xF_FFFF)
    start = where["token_table"] - TABLE_GVA
    kernel.put(TABLE_GVA, trap * (start // 16) + data[start // 16 * 16 :])
    assert kernel.search() is None
    assert 0 < sum(taken) <= 50_000 + len(taken)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 60_000), st.binary(min_size=1, max_size=64))
def test_damage_is_noticed_or_harmless(table: tuple[bytes, dict[str, int]], at: int, damage: bytes) -> None:
    kernel = Kernel()
    kernel.put(TABLE_GVA, table[0])
    kernel.put(TABLE_GVA + at, damage)
    assert kernel.search() in (None, table[1])
