"""The compressed table of its own symbols that a kernel carries: where its parts are, and how names are packed.

VMCOREINFO says where it is since Linux 6.0. Source: Linux kernel/kallsyms.c, scripts/kallsyms.c (v6.1, v6.12).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

from sevkvm.abi.x86 import PAGE_NBYTES
from sevkvm.errors import BadGuestData
from sevkvm.linux.kallsymsearch import search_table

if TYPE_CHECKING:
    from sevkvm.linux.space import KernelSpace
    from sevkvm.linux.vmcoreinfo import VmcoreInfo

_PARTS: Final = ("names", "num_syms", "token_table", "token_index", "offsets", "relative_base")
_SYMBOLS_MAX: Final = 1 << 20
_NAMES_NBYTES_MAX: Final = 32 << 20
_CHUNK_NBYTES: Final = 256 << 10
_NAME_NBYTES_MAX: Final = 2 + 0x3FFF
_TOKENS: Final = 256
_TOKEN_NBYTES_MAX: Final = 512


class PackedTable(NamedTuple):
    """Where the parts of the table are (gva), how many symbols it has, and what a byte of a name stands for."""

    where: dict[str, int]
    nsymbols: int
    tokens: list[bytes]
    base: int


def find_table(space: KernelSpace, info: VmcoreInfo, *, search: bool = False) -> PackedTable:
    """Where the note says that it is, or where it is found; BadGuestData where there is none.

    ``search``: look for it if the note does not say, at the price of thousands of pages.
    """
    where = {part: gva for part in _PARTS if (gva := info.symbols.get(f"kallsyms_{part}")) is not None}
    missing = [part for part in _PARTS if part not in where]
    if missing:
        found = search_table(space, info) if search else None
        if found is None:
            age = "Linux before 6.0" if not where else "a form of the table that is not known here"
            raise BadGuestData(
                f"the kernel's note does not say where kallsyms_{missing[0]} is ({age})"
                + (", and no such table was found in its memory" if search else ""),
                help="names of such a kernel are in its System.map or vmlinux (gdb: symbol-file -o OFFSET vmlinux)",
            )
        where = found
    count = int.from_bytes(space.read(where["num_syms"], 4), "little")
    if not 0 < count <= _SYMBOLS_MAX:
        raise BadGuestData(f"a kernel with {count} symbols")
    tokens = _tokens(space, where["token_table"], where["token_index"])
    return PackedTable(where, count, tokens, space.u64(where["relative_base"]))


def packed_names(space: KernelSpace, table: PackedTable) -> Iterator[bytes]:
    """The tokens of each symbol, the type first; each is stored behind its length."""
    data, at, read = b"", 0, 0
    for _ in range(table.nsymbols):
        if len(data) - at < _NAME_NBYTES_MAX and read < _NAMES_NBYTES_MAX:
            more = _readable(space, table.where["names"] + read, _CHUNK_NBYTES)
            data, at, read = data[at:] + more, 0, read + len(more) if more else _NAMES_NBYTES_MAX
        if at + 2 > len(data):
            raise BadGuestData("the kernel's symbol names do not end")
        nbytes = data[at]
        at += 1
        if nbytes & 0x80:  # since 6.1
            nbytes = nbytes & 0x7F | data[at] << 7
            at += 1
        yield data[at : at + nbytes]
        at += nbytes


def _readable(space: KernelSpace, gva: int, nbytes: int) -> bytes:
    """At most nbytes: past the names there may be nothing."""
    try:
        return space.read(gva, nbytes)
    except BadGuestData:
        pass
    data = b""
    while len(data) < nbytes:
        at = gva + len(data)
        try:
            data += space.read(at, PAGE_NBYTES - at % PAGE_NBYTES)
        except BadGuestData:
            break
    return data


def _tokens(space: KernelSpace, table_gva: int, index_gva: int) -> list[bytes]:
    """What each byte of a compressed name stands for."""
    starts = struct.unpack(f"<{_TOKENS}H", space.read(index_gva, 2 * _TOKENS))
    if list(starts) != sorted(starts):
        raise BadGuestData("the kernel's table of symbol tokens is not in order")
    table = space.read(table_gva, starts[-1])
    last = _string(space, table_gva + starts[-1])
    ends = [*starts[1:], len(table)]
    tokens = [table[start:end].rstrip(b"\0") for start, end in zip(starts, ends, strict=True)]
    if max(map(len, tokens)) > _TOKEN_NBYTES_MAX:
        raise BadGuestData("the kernel has symbol tokens that are longer than any name")
    return [*tokens[:-1], last]


def _string(space: KernelSpace, gva: int) -> bytes:
    data = b""
    while len(data) < _TOKEN_NBYTES_MAX:
        data += space.read(gva + len(data), 16)
        if b"\0" in data:
            return data.partition(b"\0")[0]
    raise BadGuestData("the kernel's last symbol token has no end")
