"""ELF cores of a machine: PT_LOADs by p_paddr, notes.

Parsed here and not by a library: of ELF only these two headers and the notes matter, and a core file that wants to
harm its reader meets bounds that we can state. Source: System V ABI, chapters 4 and 5.

A PT_LOAD whose file size is below its memory size lost pages on the way (makedumpfile leaves out what it filters):
the rest is missing, not zero.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from sevkvm import errors
from sevkvm.abi import elf
from sevkvm.dumpfile.contents import DumpContents, Missing
from sevkvm.dumpfile.notes import Note, cpus_of, is_a_process, is_live, read_notes, vmcoreinfo_of
from sevkvm.dumpfile.spans import FlatStore, Span

if TYPE_CHECKING:
    from sevkvm.dumpfile.image import MappedFile

_PN_XNUM: Final = 0xFFFF
_SH_INFO_AT: Final = 44
_SHDR_NBYTES: Final = 64
_MOST_PHDRS: Final = 1 << 20
_LEAST_ALIAS_BIT, _MOST_ALIAS_BIT = 32, 51
_KINDS: Final = {1: "an object file", 2: "an executable", 3: "an executable or a library"}


class Load(NamedTuple):
    """A PT_LOAD: ``number`` is its place among the program headers."""

    number: int
    offset: int
    vaddr: int
    paddr: int
    file_nbytes: int
    nbytes: int


def open_elf(image: MappedFile) -> DumpContents:
    """An ELF core of a 64-bit x86 machine; BadDump for any other file."""
    ehdr = _header(image)
    notes: list[Note] = []
    loads: list[Load] = []
    for number, phdr in enumerate(_program_headers(image, ehdr)):
        kind, _, offset, vaddr, paddr, file_nbytes, nbytes, _ = phdr
        if kind == elf.PT_NOTE:
            notes += read_notes(image, image.path, offset, file_nbytes)
        elif kind == elf.PT_LOAD:
            if file_nbytes > nbytes:
                raise errors.BadDump(
                    image.path, f"PT_LOAD {number} has more bytes in the file ({file_nbytes}) than in memory"
                )
            loads.append(Load(number, offset, vaddr, paddr, file_nbytes, nbytes))
    if is_a_process(notes):
        raise errors.BadDump(image.path, "this is the core of a process, not of a machine: use gdb")
    loads, alias_bit = _without_aliases(loads)
    return DumpContents(
        "elf",
        image.nbytes,
        FlatStore(image, _spans(loads), _left_out(loads)),
        cpus_of(notes, image.path),
        vmcoreinfo_of(notes),
        alias_bit,
        live=is_live(notes),
    )


def _header(image: MappedFile) -> tuple[int, ...]:
    data = image.take(0, elf.EHDR.size, "the ELF header")
    ident, kind, machine, *rest = elf.EHDR.unpack(data)
    if ident[4] != 2 or ident[5] != 1:
        raise errors.BadDump(image.path, "an ELF file, but not a 64-bit little-endian one: no dump of ours")
    if kind != elf.ET_CORE:
        raise errors.BadDump(
            image.path, f"an ELF file, but {_KINDS.get(kind, f'of type {kind}')}, not a core"
        )
    if machine != elf.EM_X86_64:
        raise errors.BadDump(image.path, f"an ELF core of machine {machine}, not of x86-64 (62)")
    return (kind, machine, *rest)


def _program_headers(image: MappedFile, ehdr: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    phoff, shoff, phentsize, phnum = ehdr[4], ehdr[5], ehdr[8], ehdr[9]
    if phnum == _PN_XNUM and shoff:  # the true count is in the first section header
        section = image.take(shoff, _SHDR_NBYTES, "the first section header")
        (phnum,) = struct.unpack_from("<I", section, _SH_INFO_AT)
    if not phnum:
        raise errors.BadDump(image.path, "an ELF core without program headers")
    if phentsize != elf.PHDR.size:
        raise errors.BadDump(
            image.path, f"its program headers are {phentsize} bytes each, not {elf.PHDR.size}"
        )
    if phnum > _MOST_PHDRS:
        raise errors.BadDump(image.path, f"{phnum} program headers are more than any dump has")
    return elf.PHDR.iter_unpack(image.take(phoff, phnum * phentsize, f"{phnum} program headers"))


def _without_aliases(loads: Sequence[Load]) -> tuple[list[Load], int | None]:
    """Drop segments that show the bytes of another one again at ``p_paddr | 1 << bit``; the bit, if it is one.

    Dumps do so for readers that do not know the C-bit: an entry with the bit set then leads somewhere.
    """
    lowest: dict[tuple[int, int], int] = {}
    for load in loads:
        key = (load.offset, load.file_nbytes)
        lowest[key] = min(load.paddr, lowest.get(key, load.paddr))
    kept, bits = [], set()
    for load in loads:
        differs = load.paddr ^ lowest[load.offset, load.file_nbytes]
        bit = differs.bit_length() - 1
        if load.file_nbytes and differs.bit_count() == 1 and _LEAST_ALIAS_BIT <= bit <= _MOST_ALIAS_BIT:
            bits.add(bit)
        else:
            kept.append(load)
    return kept, bits.pop() if len(bits) == 1 else None


def _spans(loads: Sequence[Load]) -> Iterator[Span]:
    for load in loads:
        if load.file_nbytes:
            yield Span(load.paddr, load.file_nbytes, load.offset, f"PT_LOAD {load.number}")


def _left_out(loads: Sequence[Load]) -> Iterator[Missing]:
    for load in loads:
        if load.nbytes > load.file_nbytes:
            why = f"the dump left it out (PT_LOAD {load.number} is longer in memory than in the file)"
            yield Missing(load.paddr + load.file_nbytes, load.nbytes - load.file_nbytes, why)
