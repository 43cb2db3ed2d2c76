"""A kernel's own memory by virtual address: small reads for those who follow its data structures."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Protocol

from sevkvm.errors import BadGuestData, MemoryFault
from sevkvm.linux.tables import proved
from sevkvm.paging.walk import Walker

if TYPE_CHECKING:
    from sevkvm.paging.form import PagingForm

_U64: Final = struct.Struct("<Q")
_GVA_END: Final = 1 << 64


class Memory(Protocol):
    """What following the kernel's data needs of guest memory."""

    def read(self, gpa: int, nbytes: int, private: bool = True) -> bytes:
        """Exactly nbytes, or MemoryFault."""
        ...

    def read_tables(self, gpas: Sequence[int], *, keep: bool = True) -> Sequence[bytes | None]:
        """Whole page-table pages."""
        ...


class KernelSpace:
    """Memory as ``form`` maps it; of an encrypted guest only what is private, which its host cannot forge."""

    def __init__(self, memory: Memory, form: PagingForm) -> None:
        self.memory = memory
        self.form = form
        self._walker = Walker(memory, form)

    def gpa(self, gva: int) -> int:
        """Where ``gva`` is; BadGuestData if it is not mapped."""
        found = proved(self._walker.translate(gva), self.form.cbit_pos) if 0 <= gva < _GVA_END else None
        if found is None:
            raise BadGuestData(f"the kernel does not map 0x{gva:x}, where its data should be")
        return found

    def read(self, gva: int, nbytes: int) -> bytes:
        """Exactly nbytes; BadGuestData if they are not all there."""
        if gva < 0 or gva + nbytes > _GVA_END:
            raise BadGuestData(f"0x{gva:x} is no address of {nbytes} bytes")
        parts = []
        for piece in self._walker.pieces(gva, nbytes):
            gpa = proved(piece.translation, self.form.cbit_pos)
            if gpa is None:
                raise BadGuestData(f"the kernel does not map 0x{piece.gva:x}, where its data should be")
            try:
                parts.append(self.memory.read(gpa, piece.nbytes))
            except MemoryFault as fault:
                raise BadGuestData(f"the kernel's data at 0x{piece.gva:x} cannot be read") from fault
        return b"".join(parts)

    def u64(self, gva: int) -> int:
        """A word."""
        value: int = _U64.unpack(self.read(gva, 8))[0]
        return value
