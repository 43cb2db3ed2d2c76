"""What the pretend kernel needs of whoever calls it; each door brings its own.

Addresses are the caller's (hva). The counts follow one rule: bytes transferred from the start of the request up
to the first one that cannot be, to page granularity.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from sevkvm.shim.cipher import Bytes


class CallerGone(Exception):
    """The calling thread died or gave the call up: there is nobody to answer."""


@dataclass(frozen=True, slots=True)
class Backing:
    """What backs ``nbytes`` of address space at ``hva``: fake system-physical memory at ``spa``."""

    hva: int
    nbytes: int
    spa: int
    writable: bool


class TargetMemory(Protocol):
    """The address space a call comes from."""

    def readinto(self, hva: int, buffer: memoryview) -> int:
        """Copy out of the address space; the bytes readable before the first that is not."""
        ...

    def write(self, hva: int, data: Bytes) -> int:
        """Copy into it, respecting page protection; the bytes written before the first that could not be."""
        ...

    def backing(self, hva: int, nbytes: int) -> list[Backing]:
        """What backs the range, in order, without gaps, up to the first byte that cannot be pinned for reading."""
        ...

    def keep(self, hva: int, nbytes: int) -> None:
        """The range is pinned until it is released: its backing may be remembered."""
        ...

    def release(self, hva: int, nbytes: int) -> None:
        """It is no longer pinned."""
        ...


class Caller(Protocol):
    """The thread that issued an ioctl."""

    @property
    def pid(self) -> int:
        """Its process, for the log."""
        ...

    @property
    def memory(self) -> TargetMemory:
        """Its address space."""
        ...

    @property
    def mm(self) -> object:
        """Which address space that is: equal objects are the same one."""
        ...

    def may_lock(self, npages: int) -> bool:
        """May it have so many pages locked? (RLIMIT_MEMLOCK, CAP_IPC_LOCK)"""
        ...

    def is_sev_device(self, fd: int) -> bool:
        """Is this number, in its descriptor table, an open ``/dev/sev``?"""
        ...


def read_exactly(memory: TargetMemory, hva: int, nbytes: int) -> bytes | None:
    """``nbytes`` at ``hva``, or None if one of them cannot be read."""
    buffer = bytearray(nbytes)
    return bytes(buffer) if memory.readinto(hva, memoryview(buffer)) == nbytes else None
