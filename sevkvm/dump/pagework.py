"""What is done to the pages of a kdump file between reading and writing: equal ones found, others compressed."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from sevkvm import native
from sevkvm.abi.x86 import PAGE_NBYTES
from sevkvm.dump.codec import Codec

_DIGEST: Final = native.PAGE_DIGEST_NBYTES
_KNOWN_PAGES: Final = 1 << 18  # about 50 MB of digests at most; later pages are compared with these only


@dataclass
class Batch:
    """Pages in ascending order as runs of (first pfn, number of pages, bytes or None for zeros)."""

    runs: list[tuple[int, int, bytes | None]] = field(default_factory=list)
    npages: int = 0
    data_nbytes: int = 0

    def add(self, pfn: int, npages: int, data: bytes | None) -> None:
        """Append a run; zeros that follow zeros join them."""
        self.npages += npages
        if data is not None:
            self.data_nbytes += len(data)
        elif self.runs:
            first, count, last = self.runs[-1]
            if last is None and first + count == pfn:
                self.runs[-1] = (first, count + npages, None)
                return
        self.runs.append((pfn, npages, data))


@dataclass(frozen=True, slots=True)
class DonePage:
    """``stored`` is what goes into the file, or None: a page with this digest went before."""

    digest: bytes
    stored: bytes | None
    flags: int


@dataclass(frozen=True, slots=True)
class DoneRun:
    """A run of pages as they go into the file; ``pages`` None: all zero."""

    pfn: int
    npages: int
    pages: list[DonePage] | None


class PageWork:
    """The pages met so far, shared by all threads.

    Digests have a key of this dump's own: nobody can have put pages into the guest that differ and yet look equal.
    """

    def __init__(self, codec: Codec) -> None:
        self._key = os.urandom(native.PAGE_DIGEST_KEY_NBYTES)
        self._codec = codec
        self._met: dict[bytes, int] = {}

    def new(self) -> Callable[[int, Batch], list[DoneRun]]:
        """The work of one thread, for ``Pipeline``."""
        compress = self._codec.new()

        def work(number: int, batch: Batch) -> list[DoneRun]:
            wanted: dict[bytes, bytes] = {}
            runs = [(pfn, npages, self._digests(number, data, wanted)) for pfn, npages, data in batch.runs]
            stored = dict(zip(wanted, compress(list(wanted.values())), strict=True))
            return [
                DoneRun(
                    pfn, npages, None if digests is None else [self._page(d, stored, wanted) for d in digests]
                )
                for pfn, npages, digests in runs
            ]

        return work

    def is_known(self, digest: bytes) -> bool:
        """Pages to come may be found equal to the one of this digest."""
        return digest in self._met

    def _digests(self, number: int, data: bytes | None, wanted: dict[bytes, bytes]) -> list[bytes] | None:
        """The digest of each page; ``wanted`` gets the pages that no batch up to this one brought."""
        if data is None:
            return None
        packed = native.page_digests(self._key, data)
        digests = [packed[at : at + _DIGEST] for at in range(0, len(packed), _DIGEST)]
        for index, digest in enumerate(digests):
            # A later batch's page is written after this one: then both are handed on, and the first to be written wins.
            if self._met.get(digest, number) >= number and digest not in wanted:
                at = index * PAGE_NBYTES
                wanted[digest] = data[at : at + PAGE_NBYTES]
                if len(self._met) < _KNOWN_PAGES:
                    self._met[digest] = number
        return digests

    def _page(self, digest: bytes, stored: dict[bytes, bytes], wanted: dict[bytes, bytes]) -> DonePage:
        compressed = stored.get(digest)
        if compressed is None:
            return DonePage(digest, None, 0)
        if len(compressed) < PAGE_NBYTES:
            return DonePage(digest, compressed, self._codec.flag)
        return DonePage(digest, wanted[digest], 0)
