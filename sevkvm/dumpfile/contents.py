"""What a dump file holds, whatever its format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from sevkvm.abi.corenotes import CpuRegisters


class Missing(NamedTuple):
    """Guest memory that the file tells of and does not hold; ``why`` completes "cannot access gpa: ..."."""

    gpa: int
    nbytes: int
    why: str


class Store(Protocol):
    """Guest-physical bytes out of a file."""

    @property
    def ranges(self) -> Sequence[tuple[int, int]]:
        """``(gpa, nbytes)`` of the guest's memory, ascending and disjoint; what is missing of it included."""
        ...

    def readinto(self, gpa: int, buffer: memoryview) -> int:
        """Fill ``buffer``; short at the first byte that the file does not hold."""
        ...

    def why_missing(self, gpa: int) -> str:
        """Why a read was short at ``gpa``."""
        ...

    def missing(self) -> Sequence[Missing]:
        """What the file tells of and does not hold, ascending."""
        ...


@dataclass(frozen=True)
class DumpContents:
    """A dump, opened.

    ``vmcoreinfo``: the text of its VMCOREINFO note, or None. ``alias_bit``: the address bit by which it shows the same
    memory twice, or None. ``remarks``: what the user should know of it, a sentence each. ``live``: it says that its
    guest ran while it was made.
    """

    format: str
    file_nbytes: int
    store: Store
    cpus: Sequence[CpuRegisters] = ()
    vmcoreinfo: bytes | None = None
    alias_bit: int | None = None
    remarks: Sequence[str] = ()
    live: bool = False
