"""A kernel's symbols by address and by name, and as a file, which pyelftools reads."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from hypothesis import given
from hypothesis import strategies as st

from sevkvm.linux.symbolfile import elf_file, is_ours, map_lines
from sevkvm.linux.symbols import Range, Symbol, Symbols

BASE = 0xFFFF_FFFF_8100_0000
KERNEL = [
    Symbol(0x1FB80, "A", "current_task"),
    Symbol(BASE, "T", "_text"),
    Symbol(BASE, "T", "_stext"),
    Symbol(BASE + 0x100, "t", "do_idle"),
    Symbol(BASE + 0x180, "t", "twice"),
    Symbol(BASE + 0x200, "W", "arch_weak"),
    Symbol(BASE + 0x280, "t", "twice"),
    Symbol(BASE + 0x300, "T", "_etext"),
    Symbol(BASE + 0x1000, "D", "init_task"),
    Symbol(BASE + 0x2000, "T", "_sinittext"),
    Symbol(BASE + 0x2000, "t", "start"),
    Symbol(BASE + 0x2100, "T", "_einittext"),
    Symbol(BASE + 0x2200, "t", "leave"),
    Symbol(BASE + 0x3000, "b", "log"),
    Symbol(BASE + 0x4000, "B", "_end"),
    Symbol(BASE + 0x9000, "D", "scratch"),
]


def elf_of(symbols: Symbols) -> ELFFile:
    return ELFFile(io.BytesIO(elf_file(symbols)))


@pytest.mark.parametrize(
    ("gva", "label"),
    [
        (BASE, "_text"),
        (BASE + 1, "_text+0x1"),
        (BASE + 0x117, "do_idle+0x17"),
        (BASE + 0x17F, "do_idle+0x7f"),
        (BASE + 0x180, "twice"),
        (BASE + 0x3FFF, "log+0xfff"),
        # not of the image
        (BASE + 0x4000, None),
        (BASE + 0x9000, None),
        (BASE - 1, None),
        (0x1FB80, None),
        (0, None),
        ((1 << 64) - 1, None),
    ],
)
def test_the_name_of_an_address(gva: int, label: str | None) -> None:
    assert Symbols(KERNEL).label(gva) == label


@given(st.lists(st.integers(0, 200), min_size=1, max_size=40), st.integers(-3, 203))
def test_never_beyond_the_next_symbol(offsets: list[int], wanted: int) -> None:
    symbols = Symbols([Symbol(BASE + offset, "t", f"s{number}") for number, offset in enumerate(offsets)])
    below = [offset for offset in offsets if offset <= wanted]
    found = symbols.at(BASE + wanted)
    if not below or wanted > max(offsets):
        assert found is None
    else:
        assert found == ((BASE + max(below), "t", f"s{offsets.index(max(below))}"), wanted - max(below))


def test_the_addresses_of_a_name() -> None:
    symbols = Symbols(KERNEL)
    assert [symbol.gva - BASE for symbol in symbols.named("twice")] == [0x180, 0x280]
    assert symbols.named("current_task")[0].gva == 0x1FB80
    assert symbols.named("twic") == symbols.named("twice_") == []
    assert symbols.beginning("_s") == ["_sinittext", "_stext"]
    assert symbols.beginning("tw") == ["twice"]


def test_sizes_reach_to_the_next_address() -> None:
    symbols = Symbols(KERNEL)
    sizes = dict(zip([symbol.name for symbol in symbols], symbols.nbytes(), strict=True))
    assert (sizes["_text"], sizes["_stext"], sizes["do_idle"], sizes["log"]) == (0x100, 0x100, 0x80, 0x1000)
    assert sizes["current_task"] == sizes["_end"] == sizes["scratch"] == 0


def test_the_ranges_of_the_image() -> None:
    assert [(start - BASE, end - BASE, code) for start, end, code in Symbols(KERNEL).ranges()] == [
        (0, 0x300, True),
        (0x300, 0x2000, False),
        (0x2000, 0x2100, True),
        (0x2100, 0x4000, False),
    ]


@pytest.mark.parametrize(
    ("symbols", "ranges"),
    [
        ([], []),
        ([Symbol(1, "A", "percpu")], []),
        ([Symbol(BASE, "t", "one")], [Range(BASE, BASE + 1, True)]),
        # contradictions: the end before the start, twice, far away
        ([Symbol(BASE, "T", "_etext"), Symbol(BASE + 4, "T", "_text")], [Range(BASE + 4, BASE + 5, True)]),
        (
            [Symbol(BASE, "T", "_text"), Symbol(BASE + 8, "T", "_etext"), Symbol(BASE + 9, "T", "_etext")],
            [Range(BASE, BASE + 10, True)],
        ),
        (
            [Symbol(BASE, "T", "_text"), Symbol((1 << 64) - 8, "T", "_end"), Symbol(BASE + 9, "t", "last")],
            [Range(BASE, BASE + 10, True)],
        ),
        ([Symbol(BASE, "T", "_end"), Symbol(BASE + 8, "T", "_text")], []),
    ],
)
def test_ranges_of_odd_kernels(symbols: list[Symbol], ranges: list[Range]) -> None:
    found = Symbols(symbols)
    assert found.ranges() == ranges
    assert {found.at(symbol.gva) is None for symbol in symbols} <= {True, False}
    assert elf_of(found).get_section_by_name(".symtab").num_symbols() == len(symbols) + 1


def test_an_elf_file_says_what_each_symbol_is() -> None:
    elf = elf_of(Symbols(KERNEL, "6.1.0"))
    assert (elf["e_type"], elf["e_machine"], elf["e_entry"]) == ("ET_EXEC", "EM_X86_64", BASE)
    table = elf.get_section_by_name(".symtab")
    found = {
        symbol.name: (
            symbol["st_value"],
            symbol["st_info"]["type"],
            symbol["st_info"]["bind"],
            symbol["st_shndx"],
        )
        for symbol in table.iter_symbols()
        if symbol.name
    }
    title = {name: number for number, name in enumerate(section.name for section in elf.iter_sections())}
    assert found["do_idle"] == (BASE + 0x100, "STT_FUNC", "STB_LOCAL", title[".text"])
    assert found["arch_weak"] == (BASE + 0x200, "STT_FUNC", "STB_WEAK", title[".text"])
    assert found["init_task"] == (BASE + 0x1000, "STT_OBJECT", "STB_GLOBAL", title[".data"])
    assert found["start"][1:] == ("STT_FUNC", "STB_LOCAL", title[".init.text"])
    assert found["leave"][1:] == ("STT_FUNC", "STB_LOCAL", title[".init.data"])
    assert found["current_task"] == (0x1FB80, "STT_NOTYPE", "STB_GLOBAL", "SHN_ABS")
    assert found["scratch"][3] == "SHN_ABS"
    bindings = [symbol["st_info"]["bind"] for symbol in table.iter_symbols()]
    first = table["sh_info"]
    assert bindings[:first] == ["STB_LOCAL"] * first
    assert "STB_LOCAL" not in bindings[first:]
    for section in elf.iter_sections("SHT_NOBITS"):
        assert (section["sh_flags"] & 4 != 0) == section.name.endswith("text")
    assert elf.get_section_by_name(".comment").data() == b"sevkvm symbols of Linux 6.1.0\0"


def test_a_file_of_ours_is_told_from_others(tmp_path: Path) -> None:
    path = tmp_path / "kernel.sym"
    path.write_bytes(elf_file(Symbols(KERNEL, "6.1.0")))
    assert is_ours(path)
    for other in (b"", b"\x7fELF", path.read_bytes()[:70], path.read_bytes().replace(b"sevkvm", b"vmlinu")):
        path.write_bytes(other)
        assert not is_ours(path)


def test_lines_as_in_system_map() -> None:
    assert list(map_lines(Symbols(KERNEL)))[:2] == [
        "000000000001fb80 A current_task",
        "ffffffff81000000 T _text",
    ]
