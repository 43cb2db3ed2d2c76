"""The addresses of a kernel's own symbols: of some by name, or of all; witnesses tell which form addresses have.

Source: Linux kernel/kallsyms.c, scripts/kallsyms.c (v6.1, v6.12).
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Final

from sevkvm.errors import BadGuestData
from sevkvm.linux.kallsymstable import PackedTable, find_table, packed_names
from sevkvm.linux.symbols import Symbol

if TYPE_CHECKING:
    from sevkvm.linux.space import KernelSpace
    from sevkvm.linux.vmcoreinfo import VmcoreInfo

_TEXT_NBYTES_MAX: Final = 1 + 512  # KSYM_NAME_LEN
_TEXTS_NBYTES_MAX: Final = 64 << 20
_PRINTABLE: Final = bytes(range(0x21, 0x7F))
_ADDRESS_MASK: Final = (1 << 64) - 1
_WITNESSES: Final = ("_stext", "init_uts_ns")  # VMCOREINFO says where they are, too


def find_symbols(space: KernelSpace, info: VmcoreInfo, wanted: Collection[str]) -> dict[str, int]:
    """The gva of each symbol that is there exactly once, by name.

    BadGuestData where the kernel has no table, or one that cannot be right.
    """
    table = find_table(space, info)
    known = [name for name in _WITNESSES if name in info.symbols]
    found = _numbers(space, table, {*wanted, *known})
    raw = {name: _offset(space, table.where["offsets"], number) for name, number in found.items()}
    # Until 6.14 negative numbers count down from the base, and others are per-CPU offsets.
    for address in (_since_615, _until_614):
        if known and all(
            name in raw and address(raw[name], table.base) == info.symbols[name] for name in known
        ):
            return {name: address(offset, table.base) for name, offset in raw.items() if name in wanted}
    raise BadGuestData("the kernel's symbol table contradicts its note")


def read_symbols(space: KernelSpace, info: VmcoreInfo) -> list[Symbol]:
    """Every symbol, in the order of the table; its witnesses agree with the note as far as they are in it.

    A kernel without CONFIG_KALLSYMS_ALL has functions only. BadGuestData as of ``find_symbols``.
    """
    table = find_table(space, info, search=True)
    texts = _texts(space, table)
    offsets = array("i", space.read(table.where["offsets"], 4 * table.nsymbols))
    numbers: dict[str, list[int]] = {name: [] for name in _WITNESSES if name in info.symbols}
    for number, text in enumerate(texts):
        if text[1:] in numbers:
            numbers[text[1:]].append(number)
    there = {name: found[0] for name, found in numbers.items() if len(found) == 1}
    for address in (_since_615, _until_614):
        if there and all(
            address(offsets[number], table.base) == info.symbols[name] for name, number in there.items()
        ):
            return [
                Symbol(address(offset, table.base) & _ADDRESS_MASK, text[0], text[1:])
                for offset, text in zip(offsets, texts, strict=True)
            ]
    raise BadGuestData("the kernel's symbol table contradicts its note")


def _texts(space: KernelSpace, table: PackedTable) -> list[str]:
    """Type and name of each symbol, proved to be letters that a terminal may get."""
    token = table.tokens.__getitem__
    texts: list[bytes] = []
    nbytes = 0
    for packed in packed_names(space, table):
        text = b"".join(map(token, packed))
        nbytes += len(text)
        if not 2 <= len(text) <= _TEXT_NBYTES_MAX or nbytes > _TEXTS_NBYTES_MAX:
            raise BadGuestData(f"the kernel's symbol {len(texts)} has a name of {len(text) - 1} bytes")
        texts.append(text)
    together = b"\n".join(texts)
    if together.translate(None, _PRINTABLE) != b"\n" * (len(texts) - 1):
        raise BadGuestData("the kernel's symbols have names that are none")
    return together.decode("ascii").split("\n")


def _since_615(offset: int, base: int) -> int:
    return base + (offset & 0xFFFF_FFFF)


def _until_614(offset: int, base: int) -> int:
    return offset if offset >= 0 else base - 1 - offset


def _offset(space: KernelSpace, offsets_gva: int, number: int) -> int:
    return int.from_bytes(space.read(offsets_gva + 4 * number, 4), "little", signed=True)


def _numbers(space: KernelSpace, table: PackedTable, wanted: set[str]) -> dict[str, int]:
    """The number of each wanted symbol that occurs once."""
    names = {name.encode(): name for name in wanted}
    may_begin = _may_begin(table.tokens, names)
    found: dict[str, int] = {}
    twice: set[str] = set()
    for number, packed in enumerate(packed_names(space, table)):
        if not packed or packed[0] not in may_begin:
            continue
        known = names.get(b"".join([table.tokens[byte] for byte in packed])[1:])
        if known is not None:
            twice |= {known} & found.keys()
            found[known] = number
    return {name: number for name, number in found.items() if name not in twice}


def _may_begin(tokens: list[bytes], names: Iterable[bytes]) -> set[int]:
    """The first bytes that a wanted name can have: most names are passed over by theirs."""
    return {byte for byte, token in enumerate(tokens) if any(name.startswith(token[1:]) for name in names)}
