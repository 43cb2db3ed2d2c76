"""ELF cores built byte by byte, right or wrong: what a reader of dumps is given.

core(load(0x1000, b"..."), load(0x5000, b"...", memory_nbytes=0x2000), notes=qemu_note(...))
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

EHDR_NBYTES, PHDR_NBYTES = 64, 56
PT_LOAD, PT_NOTE = 1, 4


@dataclass(frozen=True)
class Load:
    """A PT_LOAD. ``offset`` None: its data are placed in the file; else it points where told, and adds nothing."""

    paddr: int
    data: bytes = b""
    vaddr: int = 0
    file_nbytes: int | None = None
    memory_nbytes: int | None = None
    offset: int | None = None
    type: int = PT_LOAD


def load(paddr: int, data: bytes = b"", **rest: Any) -> Load:
    """See Load."""
    return Load(paddr, data, **rest)


def note(name: bytes, kind: int, data: bytes) -> bytes:
    """One note."""
    name += b"\0"
    head = struct.pack("<III", len(name), len(data), kind)
    return head + name + bytes(-len(name) % 4) + data + bytes(-len(data) % 4)


def header(phnum: int, *, shoff: int = 0, **changed: int) -> bytes:
    """The ELF header; ``changed``: ``kind`` ``machine`` ``phoff`` ``phentsize`` ``bits`` (1 or 2)."""
    ident = b"\x7fELF" + bytes([changed.get("bits", 2), 1, 1]) + bytes(9)
    return ident + struct.pack(
        "<HHIQQQIHHHHHH",
        changed.get("kind", 4),
        changed.get("machine", 62),
        1,
        0,
        changed.get("phoff", EHDR_NBYTES),
        shoff,
        0,
        EHDR_NBYTES,
        changed.get("phentsize", PHDR_NBYTES),
        phnum,
        64 if shoff else 0,
        1 if shoff else 0,
        0,
    )


def core(*loads: Load, notes: bytes = b"", xnum: bool = False, **changed: int) -> bytes:
    """A core: header, program headers, notes, data, each right after the other.

    ``xnum``: the number of program headers is in a section header at the end, as for more than 65534.
    """
    nphdrs = len(loads) + bool(notes)
    at = EHDR_NBYTES + nphdrs * PHDR_NBYTES
    phdrs, body = bytearray(), bytearray(notes)
    if notes:
        phdrs += struct.pack("<IIQQQQQQ", PT_NOTE, 0, at, 0, 0, len(notes), len(notes), 0)
    for each in loads:
        offset = at + len(body) if each.offset is None else each.offset
        held = len(each.data) if each.file_nbytes is None else each.file_nbytes
        nbytes = held if each.memory_nbytes is None else each.memory_nbytes
        phdrs += struct.pack("<IIQQQQQQ", each.type, 0, offset, each.vaddr, each.paddr, held, nbytes, 0)
        body += each.data
    if xnum:
        shoff = at + len(body)
        section = struct.pack("<IIQQQQIIQQ", 0, 0, 0, 0, 0, 0, 0, nphdrs, 0, 0)
        return header(0xFFFF, shoff=shoff, **changed) + bytes(phdrs + body) + section
    return header(changed.pop("phnum", nphdrs), **changed) + bytes(phdrs + body)
