"""Translate guest-virtual addresses: one, or a range page by page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from sevkvm.abi.x86 import PAGE_NBYTES
from sevkvm.native import EntryFlag
from sevkvm.paging.decoder import decoder_for
from sevkvm.paging.fetch import TableReader, fetch_tables
from sevkvm.paging.form import PagingForm
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

_GVA_END: Final = 1 << 64
_LEGACY_END: Final = 1 << 32  # of the addresses without long mode
# plain numbers: arithmetic on IntFlag costs a microsecond each
_PRESENT: Final = int(EntryFlag.PRESENT)
_WRITABLE: Final = int(EntryFlag.WRITABLE)
_USER: Final = int(EntryFlag.USER)
_NX: Final = int(EntryFlag.NX)
_LEAF: Final = int(EntryFlag.LEAF)
_PRIVATE: Final = int(EntryFlag.PRIVATE)
_RESERVED: Final = int(EntryFlag.RESERVED)
_INHERITED: Final = _WRITABLE | _USER


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

    Addresses are linear ones, as a processor with A20 open sees them: a closed A20 gate is not looked at.

    For as long as the guest's tables may be taken to stand still; not for several threads.
    """

    def __init__(self, reader: TableReader, form: PagingForm) -> None:
        self._reader = reader
        self._form = form
        self._decoder = decoder_for(form)
        self._shapes = self._decoder.levels
        self._unpack, self._entry_nbytes = self._decoder.stored.unpack_from, self._decoder.stored.size
        # of one half of the addresses in long mode; in the other modes they have no halves
        self._canonical_nbytes = 1 << self._shapes[-1].shift + 8 if form.mode.long else _LEGACY_END
        self._path: list[_Frame] = []
        self._ahead: dict[int, dict[int, bytes | None]] = {}
        self._last = 0  # of the range that is being walked

    def translate(self, gva: int) -> Translation:
        """Walk for one address (0 to 2**64 - 1; ValueError beyond)."""
        if not 0 <= gva < _GVA_END:
            raise ValueError(f"not a 64-bit address: {gva:#x}")
        if not self._decoder.canonical(gva):
            return _miss(gva, NON_CANONICAL, ())
        if not self._form.levels:
            return self._unpaged(gva)
        frame = self._stand(gva)
        if frame is None:
            return _miss(gva, TABLE_UNREADABLE, ())
        cbit_mask = self._form.cbit_mask
        while True:  # ends: each turn goes one level down, and at level 1 every entry is a leaf or a miss
            level, table_gpa, table, _, _, steps, inherited = frame
            shape = self._shapes[level]
            index = gva >> shape.shift & shape.nentries - 1
            raw = self._unpack(table, index * self._entry_nbytes)[0]
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

        A generator: it holds at most 1024 tables a level. ValueError if the range leaves 64 bits.
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
        canonical = self._canonical_nbytes
        if found.fault == NON_CANONICAL:
            return _GVA_END - canonical if self._form.mode.long else _GVA_END
        # without a step there is no paging, or it is the root that cannot be read
        span = 1 << self._shapes[found.steps[-1].level].shift if found.steps else canonical
        return found.gva - found.gva % span + span

    def _unpaged(self, gva: int) -> Translation:
        """Paging off: a linear address is a gpa, and on an encrypted guest all memory is private."""
        return Translation(gva, gva, PAGE_NBYTES, self._form.encrypted, True, True, False, ())

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
        if ahead and gpa in ahead:
            table = ahead[gpa]
        else:
            table = fetch_tables(self._reader, [gpa], self._shapes[level].table_nbytes)[0]
        if table is None:
            return None
        # the root translates both canonical halves, so it matches every gva
        shift = 64 if level == self._form.levels else self._shapes[level + 1].shift
        frame = _Frame(level, gpa, table, gva >> shift, shift, steps, inherited)
        self._path.append(frame)
        if level > 1 and self._last > gva:
            self._read_ahead(frame, gva)
        return frame

    def _read_ahead(self, frame: _Frame, gva: int) -> None:
        """Fetch in one batch what the rest of the range needs of the tables below this one."""
        level = frame.level
        shape = self._shapes[level]
        first = gva >> shape.shift & shape.nentries - 1
        left = (self._last >> shape.shift) - (gva >> shape.shift)
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
