"""The shape that a kernel's symbol table has, which proves it where nothing says where it is.

The tokens of names stand for themselves where they are letters that names are written with, so that the table of tokens
has the alphabet in it. From there everything is forced: the index that follows must be that of these tokens; before
them are names, as many as the number before the first says, and right behind the last the place of every 256th.
Source: Linux scripts/kallsyms.c (v4.6 to v6.1), with CONFIG_KALLSYMS_BASE_RELATIVE, as x86-64 has it by default.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from sevkvm.abi.x86 import PAGE_NBYTES
from sevkvm.errors import BadGuestData
from sevkvm.linux.symbols import IMAGE_NBYTES_MAX
from sevkvm.linux.vmcoreinfo import START_KERNEL_MAP

if TYPE_CHECKING:
    from sevkvm.linux.space import KernelSpace

ALPHABET: Final = b"\0".join(bytes([letter]) for letter in range(ord("a"), ord("z") + 1)) + b"\0"

_FIRST: Final = ord("a")  # the number of the alphabet's first token
_TOKENS: Final = 256
_TOKENS_NBYTES_MAX: Final = 1 << 14
_MARKED: Final = 256  # every so many names have a marker
_SYMBOLS_MIN: Final = 4 * _MARKED  # fewer would prove nothing; kernels have 50 times as many
_SYMBOLS_MAX: Final = 1 << 20
_STEPS_MAX: Final = 2 << 20  # names looked at for one alphabet: a guest may have many that lead nowhere
_BACK_NBYTES: Final = 1 << 20
_BACK_NBYTES_MAX: Final = 8 << 20  # from the tokens to the first name


def table_parts(space: KernelSpace, alphabet_gva: int) -> dict[str, int]:
    """The gva of each part of the table with these letters, by VMCOREINFO's names; BadGuestData if it is none."""
    table_gva, index_gva = _token_parts(space, alphabet_gva)
    data, budget = b"", _STEPS_MAX
    for _ in range(_BACK_NBYTES_MAX // _BACK_NBYTES):
        more = _before(space, table_gva - len(data), _BACK_NBYTES)
        data = more + data
        first_gva = table_gva - len(data)
        for at in _counts(data[: len(more) + 16]):
            (nsymbols,) = struct.unpack_from("<Q", data, at)
            fits, steps = _fits(data, at + 8, min(nsymbols, budget))
            budget -= steps
            if fits:
                base_gva = first_gva + at - 8
                return {
                    "token_table": table_gva,
                    "token_index": index_gva,
                    "names": base_gva + 16,
                    "num_syms": base_gva + 8,
                    "relative_base": base_gva,
                    "offsets": base_gva - _aligned(4 * nsymbols),
                }
        if len(more) < _BACK_NBYTES:
            break
    raise BadGuestData("no names belong to these tokens")


def _token_parts(space: KernelSpace, alphabet_gva: int) -> tuple[int, int]:
    """Where the tokens begin of which these are the letters, and their index, which must be theirs."""
    before = _before(space, alphabet_gva, _TOKENS_NBYTES_MAX)
    at = len(before)
    for _ in range(_FIRST + 1):  # the ends of the tokens before, and what is before the first
        at = before.rfind(b"\0", 0, at)
        if at < 0:
            raise BadGuestData("no tokens are before these letters")
    table_gva = alphabet_gva - (len(before) - at - 1)
    table = before[at + 1 :] + _after(space, alphabet_gva, _TOKENS_NBYTES_MAX)
    offsets, at = [], 0
    for _ in range(_TOKENS):
        offsets.append(at)
        at = table.find(b"\0", at) + 1
        if not at:
            raise BadGuestData("the tokens have no end")
    index_gva = _aligned(table_gva + at)
    if table_gva % 8 or space.read(index_gva, 2 * _TOKENS) != struct.pack(f"<{_TOKENS}H", *offsets):
        raise BadGuestData("the tokens have no index")
    return table_gva, index_gva


def _before(space: KernelSpace, gva: int, nbytes: int) -> bytes:
    """The memory up to ``gva``, in the order of addresses; fewer than nbytes where a hole is before it."""
    parts: list[bytes] = []
    first = gva
    while first > gva - nbytes:
        want = min((first - 1) % PAGE_NBYTES + 1, nbytes - (gva - first))
        try:
            parts.append(space.read(first - want, want))
        except BadGuestData:
            break
        first -= want
    return b"".join(reversed(parts))


def _after(space: KernelSpace, gva: int, nbytes: int) -> bytes:
    """The memory from ``gva`` on; fewer than nbytes before a hole."""
    data = b""
    while len(data) < nbytes:
        want = min(PAGE_NBYTES - (gva + len(data)) % PAGE_NBYTES, nbytes - len(data))
        try:
            data += space.read(gva + len(data), want)
        except BadGuestData:
            break
    return data


def _counts(data: bytes) -> Iterator[int]:
    """Where a number of symbols may be: right behind an address that others are relative to."""
    words = array("Q", data)
    for index in range(len(words) - 1):
        if (
            _SYMBOLS_MIN < words[index + 1] <= _SYMBOLS_MAX
            and 0 <= words[index] - START_KERNEL_MAP < IMAGE_NBYTES_MAX
        ):
            yield 8 * (index + 1)


def _fits(data: bytes, start: int, nsymbols: int) -> tuple[bool, int]:
    """Are so many names at ``start``, and behind them the place of every 256th? And how many it took to tell."""
    at, marked = start, []
    for number in range(nsymbols):
        if at >= len(data) or not data[at]:
            return False, number + 1
        if number % _MARKED == 0:
            marked.append(at - start)
        nbytes = data[at]
        at += 1
        if nbytes & 0x80 and at < len(data):  # since 6.1
            nbytes = nbytes & 0x7F | data[at] << 7
            at += 1
        at += nbytes
    at = start + _aligned(at - start)
    # since 5.0, and before
    found = any(data.startswith(struct.pack(f"<{len(marked)}{code}", *marked), at) for code in "IQ")
    return found and nsymbols > _SYMBOLS_MIN, nsymbols


def _aligned(value: int) -> int:
    return (value + 7) & ~7
