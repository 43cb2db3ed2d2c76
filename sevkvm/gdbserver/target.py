"""What the commands of gdb act on. Threads are vCPUs: number 1 is vCPU 0."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence


class Refused(Exception):
    """The target cannot do that; the text says why, and what would help."""


class Target(Protocol):
    """A guest as gdb sees it. Methods raise Refused, or SevKvmError for what went wrong."""

    @property
    def threads(self) -> Sequence[int]:
        """Thread numbers, ascending; at least one."""
        ...

    @property
    def first_thread(self) -> int:
        """The one that a stop is reported for until gdb picks another."""
        ...

    def stop(self) -> None:
        """Keep every vCPU from running; nothing happens if that is so already."""
        ...

    def let_go(self) -> None:
        """Undo ``stop``, whatever else happened; nothing happens if nothing is stopped."""
        ...

    def resume(self) -> None:
        """Let every vCPU run because gdb says so."""
        ...

    def step(self, thread: int) -> None:
        """Execute one instruction and stop."""
        ...

    def registers(self, thread: int) -> dict[str, int]:
        """Values by the names of :mod:`sevkvm.gdbserver.registers`; what is not known is missing."""
        ...

    def write_register(self, thread: int, name: str, value: int) -> None:
        """Change one."""
        ...

    def read(self, thread: int, address: int, nbytes: int, *, physical: bool) -> bytes:
        """Memory as the thread sees it, or at a gpa; ends early at the first byte that cannot be read."""
        ...

    def write(self, thread: int, address: int, data: bytes, *, physical: bool) -> None:
        """Change memory, all of it or none."""
        ...

    def breakpoint(self, insert: bool, kind: int, address: int, length: int) -> None:
        """Insert or remove: kind 0 software, 1 hardware, 2 write, 3 read, 4 access watchpoint."""
        ...

    def describe(self, thread: int) -> str:
        """A few words on the thread."""
        ...
