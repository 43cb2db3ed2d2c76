"""kdump-compressed files: each page compressed by itself, equal pages kept once, found through a descriptor a page."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Final

from sevkvm.abi import elf, kdump
from sevkvm.dump.kdump_body import KdumpBody
from sevkvm.dump.kdump_plan import PAGE, kdump_layout, kdump_plan, ram_bitmap
from sevkvm.dump.options import Exclude
from sevkvm.dump.pagework import Batch, PageWork
from sevkvm.dump.pipeline import Pipeline

if TYPE_CHECKING:
    from sevkvm.dump.codec import Codec
    from sevkvm.dump.kernel import KernelFacts
    from sevkvm.dump.pieces import Hole, Piece
    from sevkvm.dump.plan import Layout, Placed
    from sevkvm.dump.sink import Sink

_BATCH_DATA: Final = 512 << 10
_BATCH_PAGES: Final = 1 << 16
_MAX_WORKERS: Final = 8  # they share Python's lock


class KdumpWriter:
    """Needs a sink that seeks: bitmaps and descriptors are complete when the last page is read."""

    def __init__(
        self,
        pieces: list[Piece],
        holes: list[Hole],
        notes: bytes,
        nr_cpus: int,
        kernel: KernelFacts,
        codec: Codec,
        exclude: Exclude = Exclude.NOTHING,
    ) -> None:
        if kernel.vmcoreinfo:
            notes += elf.pack_note(b"VMCOREINFO", 0, kernel.vmcoreinfo)
        self._plan = kdump_plan(pieces, len(notes), holes)
        self.layout: Layout = kdump_layout(pieces, holes, self._plan)
        self._ram = bytes(ram_bitmap(pieces, self._plan.bitmap_nbytes, holes))
        self._notes = notes
        self._nr_cpus = nr_cpus
        self._kernel = kernel
        self._codec = codec
        self._exclude = exclude
        self._intake: KdumpIntake | None = None

    def begin(self, sink: Sink) -> KdumpIntake:
        """Headers, notes, the bitmap of RAM; room for the other bitmap and the descriptors."""
        plan, kernel = self._plan, self._kernel
        header = kdump.Header(
            kernel.utsname,
            time.time_ns() // 1000,
            self._codec.flag,
            plan.sub_header_blocks,
            2 * plan.bitmap_nbytes // PAGE,
            plan.max_mapnr,
            max(1, self._nr_cpus),  # a reader divides by it
        )
        # Readers look for VMCOREINFO in either place: a note, or text without a note's header.
        text_offset = self._notes.find(kernel.vmcoreinfo) if kernel.vmcoreinfo else -1
        sub_header = kdump.SubHeader(
            kernel.phys_base,
            plan.max_mapnr,
            vmcoreinfo=(plan.notes_offset + text_offset, len(kernel.vmcoreinfo))
            if text_offset >= 0
            else (0, 0),
            notes=(plan.notes_offset, len(self._notes)) if self._notes else (0, 0),
            dump_level=int(self._exclude),
        )
        sink.write(header.pack() + sub_header.pack() + self._notes)
        sink.skip(plan.bitmaps_offset - sink.offset)
        sink.write(self._ram)
        sink.skip(plan.data_offset - sink.offset)
        self._intake = KdumpIntake(KdumpBody(sink, plan), PageWork(self._codec))
        return self._intake

    def finish(self, sink: Sink, lost: list[Hole]) -> list[Hole]:
        """Wait for the threads; the bitmap of what is in the file. Lost pages are in neither it nor the descriptors."""
        assert self._intake is not None, "begin() comes first"
        self._intake.finish()
        return lost


class KdumpIntake:
    """Cuts what is read into batches for the threads that compress."""

    unit = PAGE

    def __init__(self, body: KdumpBody, work: PageWork) -> None:
        self._body = body
        self._batch = Batch()
        self._pfn = 0
        workers = min(len(os.sched_getaffinity(0)), _MAX_WORKERS)
        self._pipeline = Pipeline(
            work.new,
            lambda runs: body.write(runs, work.is_known),
            workers=workers,
            depth=2 * workers + 2,
        )

    def start(self, placed: Placed) -> None:
        """The next page is the piece's first."""
        self._pfn = placed.piece.gpa // PAGE

    def write(self, data: memoryview) -> None:
        """A copy goes to the threads."""
        self._add(len(data), bytes(data))

    def zeros(self, nbytes: int) -> None:
        """All share one page of the file."""
        self._add(nbytes, None)

    def lose(self, nbytes: int) -> None:
        """Pages that the file does not have."""
        self._pfn += nbytes // PAGE

    def finish(self) -> None:
        """Everything is in the file when this returns."""
        self._flush()
        self._pipeline.finish()
        self._body.finish()

    def close(self) -> None:
        """End the threads."""
        self._pipeline.close()

    def _add(self, nbytes: int, data: bytes | None) -> None:
        npages = nbytes // PAGE
        self._batch.add(self._pfn, npages, data)
        self._pfn += npages
        if self._batch.data_nbytes >= _BATCH_DATA or self._batch.npages >= _BATCH_PAGES:
            self._flush()

    def _flush(self) -> None:
        if self._batch.runs:
            self._pipeline.put(self._batch)
            self._batch = Batch()
