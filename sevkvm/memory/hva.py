"""Bytes as the VMM's own mapping holds them: shared pages, plain guests; of a private page, ciphertext."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sevkvm.abi.x86 import PAGE_NBYTES

if TYPE_CHECKING:
    from sevkvm.host.port import IoctlPort


class HvaSource:
    """A MemorySource that copies from the VMM's address space, and a MemoryStore that copies into it."""

    reason = "no readable memory of the VMM is there"

    def __init__(self, port: IoctlPort) -> None:
        self._port = port
        self.bytes_copied = 0

    def readinto(self, gpa: int, hva: int, buffer: memoryview) -> int:
        """Copy from ``hva``; the short-read rule."""
        done = self._port.readinto(hva, buffer)
        self.bytes_copied += done
        return done

    def read_pages(self, hvas: Sequence[int]) -> list[bytes | None]:
        """The page at each of ``hvas``, copied together; None where it cannot be read."""
        pages = self._port.read_pages(hvas)
        self.bytes_copied += (len(pages) - pages.count(None)) * PAGE_NBYTES
        return pages

    def write(self, hva: int, data: bytes) -> None:
        """Copy to ``hva``, respecting the VMM's page protection; or MemoryFault."""
        self._port.write(hva, data)
