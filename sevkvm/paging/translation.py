"""What a walk answers: data, no code."""

from __future__ import annotations

from typing import Final, NamedTuple

NOT_PRESENT: Final = "not-present"
RESERVED_BIT: Final = "reserved-bit"
NON_CANONICAL: Final = "non-canonical"
TABLE_UNREADABLE: Final = "table-unreadable"


class WalkStep(NamedTuple):
    """One level of a walk: the entry as stored (C-bit included) at ``index`` of the table at ``table_gpa``."""

    level: int
    table_gpa: int
    index: int  # type: ignore[assignment]  # hides tuple.index(), which nobody asks of a step
    entry: int
    cbit: bool


class Translation(NamedTuple):
    """Where a gva goes. ``gpa`` is None for a miss; then ``fault`` says why and the last step says where.

    ``private``: the leaf's C-bit; always True for an encrypted guest without paging or with 32-bit tables, which have
    none. ``writable``, ``user``: and-ed down the walk; ``nx``: or-ed. All False for a miss.
    ``fault``: ``not-present``, ``reserved-bit``, ``non-canonical`` (no steps) or ``table-unreadable`` (the last
    step is the entry that leads to the table, or there is none and it is the root).
    """

    gva: int
    gpa: int | None
    page_nbytes: int | None
    private: bool
    writable: bool
    user: bool
    nx: bool
    steps: tuple[WalkStep, ...]
    fault: str | None = None


class Piece(NamedTuple):
    """Part of a range of guest-virtual memory: what lies in one page, or a hole (``gpa`` None) under one entry.

    ``translation`` is that of ``gva``, the piece's first byte.
    """

    gva: int
    gpa: int | None
    nbytes: int
    private: bool
    translation: Translation
