"""The addresses of a kernel's own symbols, from the compressed table that it carries.

VMCOREINFO says where the table is since Linux 6.0. Source: Linux kernel/kallsyms.c, scripts/kallsyms.c (v6.1, v6.12).
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Final

from sevkvm.abi.x86 import PAGE_NBYTES
from sevkvm.errors import BadGuestData

if TYPE_CHECKING:
    from sevkvm.linux.space import KernelSpace
    from sevkvm.linux.vmcoreinfo import VmcoreInfo

_SYMBOLS_MAX: Final = 1 << 20
_NAMES_NBYTES_MAX: Final = 32 << 20
_CHUNK_NBYTES: Final = 256 << 10
_NAME_NBYTES_MAX: Final = 2 + 0x3FFF
_TOKENS: Final = 256
_TOKEN_NBYTES_MAX: Final = 512
_WITNESSES: Final = ("_stext", "init_uts_ns")  # VMCOREINFO says where they are, too


def find_symbols(space: KernelSpace, info: VmcoreInfo, wanted: Collection[str]) -> dict[str, int]:
    """The gva of each symbol that is there exactly once, by name.

    BadGuestData where the kernel has no table, or one that cannot be right.
    """
    where = {}
    for name in ("names", "num_syms", "token_table", "token_index", "offsets", "relative_base"):
        gva = info.symbols.get(f"kallsyms_{name}")
        if gva is None:
            raise BadGuestData(f"the kernel's note does not say where kallsyms_{name} is (Linux before 6.0)")
        where[name] = gva
    count = int.from_bytes(space.read(where["num_syms"], 4), "little")
    if not 0 < count <= _SYMBOLS_MAX:
        raise BadGuestData(f"a kernel with {count} symbols")
    tokens = _tokens(space, where["token_table"], where["token_index"])
    known = [name for name in _WITNESSES if name in info.symbols]
    found = _numbers(space, where["names"], count, tokens, {*wanted, *known})
    raw = {name: _offset(space, where["offsets"], number) for name, number in found.items()}
    base = space.u64(where["relative_base"])
    # Until 6.14 negative numbers count down from the base, and others are per-CPU offsets.
    for address in (_since_615, _until_614):
        if known and all(name in raw and address(raw[name], base) == info.symbols[name] for name in known):
            return {name: address(offset, base) for name, offset in raw.items() if name in wanted}
    raise BadGuestData("the kernel's symbol table contradicts its note")


def _since_615(offset: int, base: int) -> int:
    return base + (offset & 0xFFFF_FFFF)


def _until_614(offset: int, base: int) -> int:
    return offset if offset >= 0 else base - 1 - offset


def _offset(space: KernelSpace, offsets_gva: int, number: int) -> int:
    return int.from_bytes(space.read(offsets_gva + 4 * number, 4), "little", signed=True)


def _tokens(space: KernelSpace, table_gva: int, index_gva: int) -> list[bytes]:
    """What each byte of a compressed name stands for."""
    starts = struct.unpack(f"<{_TOKENS}H", space.read(index_gva, 2 * _TOKENS))
    if list(starts) != sorted(starts):
        raise BadGuestData("the kernel's table of symbol tokens is not in order")
    table = space.read(table_gva, starts[-1])
    last = _string(space, table_gva + starts[-1])
    ends = [*starts[1:], len(table)]
    tokens = [table[start:end].rstrip(b"\0") for start, end in zip(starts, ends, strict=True)]
    return [*tokens[:-1], last]


def _string(space: KernelSpace, gva: int) -> bytes:
    data = b""
    while len(data) < _TOKEN_NBYTES_MAX:
        data += space.read(gva + len(data), 16)
        if b"\0" in data:
            return data.partition(b"\0")[0]
    raise BadGuestData("the kernel's last symbol token has no end")


def _numbers(
    space: KernelSpace, names_gva: int, count: int, tokens: list[bytes], wanted: set[str]
) -> dict[str, int]:
    """The number of each wanted symbol that occurs once; each name is its length, then tokens, the type first."""
    names = {name.encode(): name for name in wanted}
    may_begin = _may_begin(tokens, names)
    found: dict[str, int] = {}
    twice: set[str] = set()
    data, at, read = b"", 0, 0
    for number in range(count):
        if len(data) - at < _NAME_NBYTES_MAX and read < _NAMES_NBYTES_MAX:
            more = _readable(space, names_gva + read, _CHUNK_NBYTES)
            data, at, read = data[at:] + more, 0, read + len(more) if more else _NAMES_NBYTES_MAX
        if at + 2 > len(data):
            raise BadGuestData("the kernel's symbol names do not end")
        nbytes = data[at]
        at += 1
        if nbytes & 0x80:  # since 6.1
            nbytes = nbytes & 0x7F | data[at] << 7
            at += 1
        compressed = data[at : at + nbytes]
        at += nbytes
        if not compressed or compressed[0] not in may_begin:
            continue
        known = names.get(b"".join([tokens[byte] for byte in compressed])[1:])
        if known is not None:
            twice |= {known} & found.keys()
            found[known] = number
    return {name: number for name, number in found.items() if name not in twice}


def _may_begin(tokens: list[bytes], names: Iterable[bytes]) -> set[int]:
    """The first bytes that a wanted name can have: most names are passed over by theirs."""
    return {byte for byte, token in enumerate(tokens) if any(name.startswith(token[1:]) for name in names)}


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
