"""Fetch page tables of any size from whoever reads table pages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from sevkvm.abi.x86 import PAGE_MASK, PAGE_NBYTES


class TableReader(Protocol):
    """Who fetches page tables."""

    def read_tables(self, gpas: Sequence[int], *, keep: bool = True) -> Sequence[bytes | None]:
        """The 4096 bytes of each table page, in order; None where there is no RAM or it cannot be read.

        On an encrypted guest always read as private: the processor does so too, whatever an entry's C-bit says.
        ``gpas`` are page-aligned and distinct. Implementations batch, and cache as long as the guest stands still;
        without ``keep`` they need not remember what they fetch now: the caller does.
        """
        ...


def fetch_tables(reader: TableReader, gpas: Sequence[int], table_nbytes: int) -> Sequence[bytes | None]:
    """Tables of ``table_nbytes`` each, in order, None like :class:`TableReader`; ``gpas`` are distinct.

    PAE's top tables are smaller than a page and lie at any multiple of their size, several to a page.
    """
    if table_nbytes == PAGE_NBYTES:
        return reader.read_tables(gpas)
    wanted = sorted({gpa & ~PAGE_MASK for gpa in gpas})
    pages = dict(zip(wanted, reader.read_tables(wanted), strict=True))
    found = ((pages[gpa & ~PAGE_MASK], gpa & PAGE_MASK) for gpa in gpas)
    return [None if page is None else page[offset : offset + table_nbytes] for page, offset in found]
