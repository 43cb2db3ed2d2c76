"""ELF64 x86-64 files that hold symbols and nothing else: sections without contents, and names for places in them.

Source: System V ABI, chapter 4 (ELF header, sections, string table, symbol table).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from sevkvm.abi.elf import EHDR, EM_X86_64

ET_EXEC: Final = 2
SHT_PROGBITS, SHT_SYMTAB, SHT_STRTAB, SHT_NOBITS = 1, 2, 3, 8
SHF_WRITE, SHF_ALLOC, SHF_EXECINSTR = 1, 2, 4
SHN_ABS: Final = 0xFFF1
STB_LOCAL, STB_GLOBAL, STB_WEAK = 0, 1, 2
STT_NOTYPE, STT_OBJECT, STT_FUNC = 0, 1, 2

SHDR: Final = struct.Struct("<IIQQQQIIQQ")
SYM: Final = struct.Struct("<IBBHQQ")
_IDENT: Final = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")  # 64-bit, little-endian, version 1


class ElfSection(NamedTuple):
    """A stretch of memory, half-open, that the file says nothing of but that it is there."""

    name: str
    start: int
    end: int
    executable: bool


class ElfSymbol(NamedTuple):
    """``section``: an index into the sections, or None for a number that is no address of theirs."""

    name: str
    value: int
    nbytes: int
    binding: int
    kind: int
    section: int | None


def pack_symbol_file(sections: Sequence[ElfSection], symbols: Iterable[ElfSymbol], comment: bytes) -> bytes:
    """The whole file; ``comment`` stands right behind the header, in a section of its own."""
    ordered = sorted(symbols, key=lambda symbol: symbol.binding != STB_LOCAL)  # locals come first
    names = Strings()
    table = bytearray(SYM.size)
    for name, value, nbytes, binding, kind, index in ordered:
        place = SHN_ABS if index is None else index + 1
        table += SYM.pack(names.add(name), binding << 4 | kind, 0, place, value, nbytes)
    first_global = 1 + sum(symbol.binding == STB_LOCAL for symbol in ordered)

    titles = Strings()
    headers = [bytes(SHDR.size)]
    for section in sections:
        flags = SHF_ALLOC | (SHF_EXECINSTR if section.executable else SHF_WRITE)
        headers.append(
            SHDR.pack(
                *(titles.add(section.name), SHT_NOBITS, flags, section.start, EHDR.size),
                *(section.end - section.start, 0, 0, 1, 0),
            )
        )
    body = bytearray()

    def add(title: str, kind: int, data: bytes, *, link: int = 0, info: int = 0, entry: int = 0) -> None:
        body.extend(bytes(-len(body) % 8))
        offset = EHDR.size + len(body)
        headers.append(SHDR.pack(titles.add(title), kind, 0, 0, offset, len(data), link, info, 8, entry))
        body.extend(data)

    add(".comment", SHT_PROGBITS, comment)
    add(".symtab", SHT_SYMTAB, bytes(table), link=len(headers) + 1, info=first_global, entry=SYM.size)
    add(".strtab", SHT_STRTAB, names.data())
    titles.add(".shstrtab")
    add(".shstrtab", SHT_STRTAB, titles.data())
    body.extend(bytes(-len(body) % 8))
    entry = sections[0].start if sections else 0  # gdb warns of one that is in no section
    ehdr = EHDR.pack(
        *(_IDENT, ET_EXEC, EM_X86_64, 1, entry, 0, EHDR.size + len(body), 0),
        *(EHDR.size, 0, 0, SHDR.size, len(headers), len(headers) - 1),
    )
    return b"".join([ehdr, body, *headers])


class Strings:
    """A string table that is being made; equal strings are there once."""

    def __init__(self) -> None:
        self._offsets = {"": 0}
        self._nbytes = 1

    def add(self, text: str) -> int:
        """Its offset."""
        offset = self._offsets.get(text)
        if offset is None:
            offset = self._offsets[text] = self._nbytes
            self._nbytes += len(text) + 1
        return offset

    def data(self) -> bytes:
        """The table so far."""
        return "".join(f"{text}\0" for text in self._offsets).encode("ascii")
