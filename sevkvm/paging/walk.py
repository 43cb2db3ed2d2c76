"""Translate one guest-virtual address."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class WalkStep:
    """One level of a walk: the entry as stored (C-bit included) at ``index`` of the table at ``table_gpa``."""

    level: int
    table_gpa: int
    index: int
    entry: int
    cbit: bool


@dataclass(frozen=True)
class Translation:
    """Where a gva goes. ``gpa`` is None for a miss; then ``fault`` says why and the last step says where.

    ``private``: the leaf's C-bit. ``writable``, ``user``: and-ed down the walk; ``nx``: or-ed.
    ``fault``: ``not-present``, ``reserved-bit``, ``non-canonical`` or ``table-unreadable``.
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
