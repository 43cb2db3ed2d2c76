"""A kernel's symbol table in guest memory, built for tests: tokens as the kernel's build makes them."""

from __future__ import annotations

import struct

# Two tokens of several letters, the rest stand for themselves.
TOKENS = [bytes([byte]) for byte in range(256)]
TOKENS[0x80] = b"Dpgd"
TOKENS[0x81] = b"_list"
TOKENS[0] = TOKENS[255] = b"longest"


def compress(name: bytes) -> bytes:
    """A symbol's name, its type before it."""
    return name.replace(b"Dpgd", b"\x80").replace(b"_list", b"\x81")


def build(
    symbols: list[tuple[str, int]], gva: int, base: int, *, since_615: bool = False
) -> tuple[bytes, dict[str, int]]:
    """``symbols``: type and name together, and address. The bytes for ``gva``, and the SYMBOL() lines of the note.

    Until 6.14 an address below 2 GiB stands for itself: a per-CPU offset.
    """
    names = bytearray()
    for name, _ in symbols:
        packed = compress(name.encode())
        length = len(packed)
        names += bytes([length]) if length < 128 else bytes([length & 0x7F | 0x80, length >> 7])
        names += packed
    offsets = b"".join(
        struct.pack("<I", address - base if since_615 else _until_614(address, base))
        for _, address in symbols
    )
    table, index = b"", b""
    for token in TOKENS:
        index += struct.pack("<H", len(table))
        table += token + b"\0"
    parts = {
        "num_syms": struct.pack("<Q", len(symbols)),
        "names": bytes(names),
        "token_table": table,
        "token_index": index,
        "offsets": offsets,
        "relative_base": struct.pack("<Q", base),
    }
    data, where = b"", {}
    for name, part in parts.items():
        where[f"kallsyms_{name}"] = gva + len(data)
        data += part + bytes(-len(part) % 8)
    return data, where


def build_old(
    symbols: list[tuple[str, int]], gva: int, base: int, *, marker_code: str = "I"
) -> tuple[bytes, dict[str, int]]:
    """The same as Linux before 6.0 has it: in its order, and with the place of every 256th name."""
    names, markers = bytearray(), []
    for number, (name, _) in enumerate(symbols):
        if number % 256 == 0:
            markers.append(len(names))
        packed = compress(name.encode())
        names += bytes([len(packed)]) + packed
    table, index = b"", b""
    for token in TOKENS:
        index += struct.pack("<H", len(table))
        table += token + b"\0"
    parts = {
        "offsets": b"".join(struct.pack("<I", _until_614(address, base)) for _, address in symbols),
        "relative_base": struct.pack("<Q", base),
        "num_syms": struct.pack("<Q", len(symbols)),
        "names": bytes(names),
        "markers": struct.pack(f"<{len(markers)}{marker_code}", *markers),
        "token_table": table,
        "token_index": index,
    }
    data, where = b"", {}
    for name, part in parts.items():
        where[name] = gva + len(data)
        data += part + bytes(-len(part) % 8)
    return data, where


def _until_614(address: int, base: int) -> int:
    return address if address < 1 << 31 else (base - 1 - address) & 0xFFFF_FFFF
