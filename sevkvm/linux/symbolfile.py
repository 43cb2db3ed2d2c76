"""A kernel's symbols as a file: ELF for debuggers (addresses final, KASLR included), or lines as in System.map."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from sevkvm.abi import elfsymbols
from sevkvm.abi.elf import EHDR
from sevkvm.abi.elfsymbols import ElfSection, ElfSymbol
from sevkvm.linux.symbols import Range, Symbol, Symbols

_MARK: Final = b"sevkvm symbols of "
_TITLES: Final = {True: (".text", ".init.text"), False: (".data", ".init.data", ".bss")}


def elf_file(symbols: Symbols) -> bytes:
    """An ELF file with names and addresses and nothing of the guest's memory besides."""
    ranges = symbols.ranges()
    left = {kind: iter(titles) for kind, titles in _TITLES.items()}
    sections = [ElfSection(next(left[each.executable]), *each) for each in ranges]
    starts = [each.start for each in ranges]
    packed = (
        _packed(symbol, nbytes, ranges, starts)
        for symbol, nbytes in zip(symbols, symbols.nbytes(), strict=True)
    )
    comment = _MARK + f"Linux {symbols.release}".encode("ascii", "replace") + b"\0"
    return elfsymbols.pack_symbol_file(sections, packed, comment)


def is_ours(path: Path) -> bool:
    """Is that a file which ``elf_file`` made? What is not may be somebody's vmlinux. OSError if it cannot be read."""
    with path.open("rb") as file:
        head = file.read(EHDR.size + len(_MARK))
    return head.startswith(b"\x7fELF") and head[EHDR.size :] == _MARK


def map_lines(symbols: Symbols) -> Iterator[str]:
    """``ffffffff81000000 T _text``: as System.map, ``nm`` and /proc/kallsyms have it."""
    return (f"{gva:016x} {letter} {name}" for gva, letter, name in symbols)


def _packed(symbol: Symbol, nbytes: int, ranges: list[Range], starts: list[int]) -> ElfSymbol:
    gva, letter, name = symbol
    section = bisect_right(starts, gva) - 1
    if section < 0 or gva >= ranges[section].end:
        return ElfSymbol(name, gva, 0, _binding(letter), elfsymbols.STT_NOTYPE, None)
    if letter in "Aa":
        kind = elfsymbols.STT_NOTYPE
    else:
        # a weak symbol's letter does not tell code from data; functions of .exit.text lie among data
        code = ranges[section].executable or letter in "Tt"
        kind = elfsymbols.STT_FUNC if code else elfsymbols.STT_OBJECT
    return ElfSymbol(name, gva, nbytes, _binding(letter), kind, section)


def _binding(letter: str) -> int:
    if letter in "WwVv":
        return elfsymbols.STB_WEAK
    return elfsymbols.STB_GLOBAL if letter.isupper() else elfsymbols.STB_LOCAL
