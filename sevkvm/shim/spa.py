"""Fake system-physical addresses: stable for as long as the same bytes are the same memory.

A page of a file, memfd or other shared mapping is known by (device, inode, offset), so that every mapping of it
agrees; private memory by (address space, virtual address). Each such object gets a 64-bit base from a keyed hash,
which needs no table that could grow; two objects meet with a chance of 2**-52, and then nothing breaks.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b

from sevkvm.abi.x86 import PAGE_MASK

_REMEMBERED = 1024
_ADDRESS_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Vma:
    """One mapping of an address space: [start, end), ``inode`` 0 where it is anonymous."""

    start: int
    end: int
    readable: bool
    writable: bool
    shared: bool
    offset: int
    device: int
    inode: int


def parse_maps(text: bytes) -> list[Vma]:
    """The mappings in ``/proc/PID/maps``, in order."""
    vmas = []
    for line in text.splitlines():
        area, flags, offset, device, inode = line.split(None, 5)[:5]
        start, _, end = area.partition(b"-")
        major, _, minor = device.partition(b":")
        vmas.append(
            Vma(
                int(start, 16),
                int(end, 16),
                flags[0:1] == b"r",
                flags[1:2] == b"w",
                flags[3:4] == b"s",
                int(offset, 16),
                int(major, 16) << 20 | int(minor, 16),
                int(inode),
            )
        )
    return vmas


class SpaMap:
    """One host's assignment of addresses."""

    def __init__(self) -> None:
        self._key = os.urandom(32)
        self._base = lru_cache(_REMEMBERED)(self._hash)

    def address(self, space: int, vma: Vma, hva: int) -> int:
        """The address of the byte at ``hva``, which lies in ``vma`` of address space number ``space``."""
        if vma.shared and vma.inode:
            return self._base("file", vma.device, vma.inode) + hva - vma.start + vma.offset & _ADDRESS_MASK
        return self._base("private", space) + hva & _ADDRESS_MASK

    def _hash(self, *name: object) -> int:
        digest = blake2b(repr(name).encode(), key=self._key, digest_size=8).digest()
        return int.from_bytes(digest, "little") & ~PAGE_MASK
