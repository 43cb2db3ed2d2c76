"""Descriptors and page data of a kdump file, in the order in which pages are delivered."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

from sevkvm.abi import kdump
from sevkvm.dump.kdump_plan import PAGE, KdumpPlan, set_bits

if TYPE_CHECKING:
    from sevkvm.dump.pagework import DonePage, DoneRun
    from sevkvm.dump.sink import Sink

_ZERO_PAGE: Final = bytes(PAGE)


class KdumpBody:
    """Writes at the sink's end and in the room for descriptors before it. The first page of the data is the zero page:
    every page of zeros has its descriptor.
    """

    def __init__(self, sink: Sink, plan: KdumpPlan) -> None:
        self._sink = sink
        self._plan = plan
        self._bitmap = bytearray(plan.bitmap_nbytes)
        self._desc_offset = plan.descs_offset
        self._descs: dict[bytes, bytes] = {}
        self._zero_desc = kdump.DESC.pack(sink.offset, PAGE, 0, 0)
        sink.write(_ZERO_PAGE)

    def write(self, runs: Iterable[DoneRun], is_known: Callable[[bytes], bool]) -> None:
        """The next pages. ``is_known``: a later page may refer to this digest."""
        descs: list[bytes] = []
        data: list[bytes] = []
        offset = self._sink.offset
        for run in runs:
            set_bits(self._bitmap, run.pfn, run.npages)
            if run.pages is None:
                descs.append(self._zero_desc * run.npages)
                continue
            for page in run.pages:
                desc = self._descs.get(page.digest)
                if desc is None:
                    desc, stored = self._describe(page, offset)
                    if is_known(page.digest):
                        self._descs[page.digest] = desc
                    data.append(stored)
                    offset += len(stored)
                descs.append(desc)
        self._put(b"".join(descs), b"".join(data))

    def finish(self) -> None:
        """The bitmap of what is in the file, after that of RAM."""
        self._sink.rewrite(self._plan.bitmaps_offset + self._plan.bitmap_nbytes, bytes(self._bitmap))

    @staticmethod
    def _describe(page: DonePage, offset: int) -> tuple[bytes, bytes]:
        assert page.stored is not None, "the batch that brought this page was delivered before"
        return kdump.DESC.pack(offset, len(page.stored), page.flags, 0), page.stored

    def _put(self, descs: bytes, data: bytes) -> None:
        self._sink.rewrite(self._desc_offset, descs)
        self._desc_offset += len(descs)
        self._sink.write(data)
