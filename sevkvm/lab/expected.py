"""What a right translation says of a guest whose tables the lab has built: its leaves, and where nothing is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mapping:
    """One leaf of the guest's page tables: what a right translation of ``gva`` says.

    ``writable`` and ``user`` are and-ed over all levels, ``nx`` is or-ed.
    """

    gva: int
    gpa: int
    page_nbytes: int
    private: bool
    writable: bool
    user: bool
    nx: bool


@dataclass(frozen=True)
class Miss:
    """A ``gva`` that nothing maps; ``level`` (5 = PML5 ... 1 = PT) is where its walk ends."""

    gva: int
    level: int
