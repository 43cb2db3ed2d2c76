"""Translate guest-virtual addresses: one, or a range page by page."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple, Protocol

from sevkvm.abi.x86 import PAGE_NBYTES
from sevkvm.native import EntryFlag
from sevkvm.paging.decoder import decoder_for
from sevkvm.paging.form import PagingForm, entry_nbytes
from sevkvm.paging.translation import (
    NON_CANONICAL,
    NOT_PRESENT,
    RESERVED_BIT,
    TABLE_UNREADABLE,
    Piece,
    Translation,
    WalkStep,
)

__all__ = ["Piece", "TableReader", "Translation", "WalkStep", "Walker", "translate", "translate_range"]

_ENTRY: Final = struct.Struct("<Q")
_GVA_END: Final = 1 << 64
_LINEAR_MASK: Final = 0xFFFF_FFFF
# plain numbers: arithmetic on IntFlag costs a microsecond each
_PRESENT: Final = int(EntryFlag.PRESENT)
_WRITABLE: Final = int(EntryFlag.WRITABLE)
_USER: Final = int(EntryFlag.USER)
_NX: Final = int(EntryFlag.NX)
_LEAF: Final = int(EntryFlag.LEAF)
_PRIVATE: Final = int(EntryFlag.PRIVATE)
_RESERVED: Final = int(EntryFlag.RESERVED)
_INHERITED: Final = _WRITABLE | _USER


class TableReader(Protocol):
    """Who fetches page tables."""

    def read_tables(self, gpas: Sequence[int]) -> Sequence[bytes | None]:
        """The 4096 bytes of each table page, in order; None where there is no RAM or it cannot be read.

        On an encrypted guest always read as private: the processor does so too, whatever an entry's C-bit says.
        ``gpas`` are page-aligned and distinct. Implementations batch, and cache as long as the guest stands still.
        """
        ...


class _Frame(NamedTuple):
    """A table on the current path."""

    level: int
    gpa: int
    table: bytes
    start: int  # gva >> shift of all it translates
    shift: int
    steps: tuple[WalkStep, ...]
    inherited: int  # WRITABLE and USER and-ed, NX or-ed


class Walker:
    """Walks of one operation: keeps the path of tables it stands on, so that neighbours share them.

    For as long as the guest's tables may be taken to stand still; not for several threads.
    """

    def __init__(self, reader: TableReader, form: PagingForm) -> None:
        self._reader = reader
        self._form = form
        self._decoder = decoder_for(form)
        self._path: list[_Frame] = []
        self._ahead: dict[int, dict[int, bytes | None]] = {}
        self._last = 0  # of the range that is being walked

    def translate(self, gva: int) -> Translation:
        """Walk for one address (0 to 2**64 - 1; ValueError beyond)."""
        if not 0 <= gva < _GVA_END:
            raise ValueError(f"not a 64-bit address: {gva:#x}")
        if not self._form.levels:
            return self._unpaged(gva)
        if not self._decoder.canonical(gva):
            return _miss(gva, NON_CANONICAL, ())
        frame = self._stand(gva)
        if frame is None:
            return _miss(gva, TABLE_UNREADABLE, ())
        cbit_mask = self._form.cbit_mask
        while True:  # ends: each turn goes one level down, and at level 1 every entry is a leaf or a miss
            level, table_gpa, table, _, _, steps, inherited = frame
            index = gva >> 3 + 9 * level & 511
            raw = _ENTRY.unpack_from(table, index * 8)[0]
            gpa, page_nbytes, flags = self._decoder.entry(level, raw)
            steps = (*steps, WalkStep(level, table_gpa, index, raw, raw & cbit_mask != 0))
            if not flags & _PRESENT:
                return _miss(gva, NOT_PRESENT, steps)
            if flags & _RESERVED:
                return _miss(gva, RESERVED_BIT, steps)
            inherited = inherited & flags & _INHERITED | (inherited | flags) & _NX
            if flags & _LEAF:
                return Translation(
                    gva,
                    gpa | gva & page_nbytes - 1,
                    page_nbytes,
                    flags & _PRIVATE != 0,
                    inherited & _WRITABLE != 0,
                    inherited & _USER != 0,
                    inherited & _NX != 0,
                    steps,
                )
            lower = self._enter(level - 1, gpa, gva, steps, inherited)
            if lower is None:
                return _miss(gva, TABLE_UNREADABLE, steps)
            frame = lower

    def pieces(self, gva: int, nbytes: int) -> Iterator[Piece]:
        """The pieces of a range, in order and without gaps; each table is fetched once, siblings in one batch.

        A generator: it holds at most 512 tables a level. ValueError if the range leaves 64 bits.
        """
        end = gva + nbytes
        if nbytes < 0 or not 0 <= gva or end > _GVA_END:
            raise ValueError(f"not a range of 64-bit addresses: {gva:#x}, {nbytes:#x} bytes")
        self._last = end - 1
        while gva < end:
            found = self.translate(gva)
            size = min(self._reach(found), end) - gva
            yield Piece(gva, found.gpa, size, found.private, found)
            gva += size

    def _reach(self, found: Translation) -> int:
        """The first gva past what this answer holds for."""
        if not self._form.levels:
            return _GVA_END if found.fault else _LINEAR_MASK + 1
        half = entry_nbytes(self._form.levels + 1) >> 1  # of the canonical addresses
        if found.fault == NON_CANONICAL:
            return _GVA_END - half
        # without a step it is the root that cannot be read
        span = entry_nbytes(found.steps[-1].level) if found.steps else half
        return found.gva - found.gva % span + span

    def _unpaged(self, gva: int) -> Translation:
        """Paging off: a linear address is a gpa, and on an encrypted guest all memory is private."""
        if gva > _LINEAR_MASK:
            return _miss(gva, NON_CANONICAL, ())
        encrypted = self._form.cbit_pos is not None
        return Translation(gva, gva, PAGE_NBYTES, encrypted, True, True, False, ())

    def _stand(self, gva: int) -> _Frame | None:
        """The lowest table of the current path that translates ``gva``; the root, or None if it is unreadable."""
        path = self._path
        while path and gva >> path[-1].shift != path[-1].start:
            path.pop()
        if path:
            return path[-1]
        return self._enter(self._form.levels, self._form.root_gpa, gva, (), _INHERITED)

    def _enter(
        self, level: int, gpa: int, gva: int, steps: tuple[WalkStep, ...], inherited: int
    ) -> _Frame | None:
        ahead = self._ahead.get(level)
        table = ahead[gpa] if ahead and gpa in ahead else self._reader.read_tables([gpa])[0]
        if table is None:
            return None
        # the root translates both canonical halves, so it matches every gva
        shift = 64 if level == self._form.levels else 12 + 9 * level
        frame = _Frame(level, gpa, table, gva >> shift, shift, steps, inherited)
        self._path.append(frame)
        if level > 1 and self._last > gva:
            self._read_ahead(frame, gva)
        return frame

    def _read_ahead(self, frame: _Frame, gva: int) -> None:
        """Fetch in one batch what the rest of the range needs of the tables below this one."""
        level = frame.level
        first = gva >> 3 + 9 * level & 511
        left = (self._last >> 3 + 9 * level) - (gva >> 3 + 9 * level)
        if not left:
            return
        wanted = {
            run.gpa: None
            for run in self._decoder.table(level, frame.table)
            if first <= run.first <= first + left and not run.flags & (_LEAF | _RESERVED)
        }
        before = self._ahead.get(level - 1, {})
        missing = [gpa for gpa in wanted if gpa not in before]
        fetched = dict(zip(missing, self._reader.read_tables(missing), strict=True)) if missing else {}
        self._ahead[level - 1] = {gpa: before[gpa] if gpa in before else fetched[gpa] for gpa in wanted}


def _miss(gva: int, fault: str, steps: tuple[WalkStep, ...]) -> Translation:
    return Translation(gva, None, None, False, False, False, False, steps, fault)


def translate(reader: TableReader, form: PagingForm, gva: int) -> Translation:
    """Walk the tables for one address; a miss is an answer, not an exception. At most ``levels`` tables are read."""
    return Walker(reader, form).translate(gva)


def translate_range(reader: TableReader, form: PagingForm, gva: int, nbytes: int) -> Iterator[Piece]:
    """The pieces of ``[gva, gva + nbytes)``: one a page, and one a hole however large; see :class:`Piece`."""
    return Walker(reader, form).pieces(gva, nbytes)
