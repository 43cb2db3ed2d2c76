"""Pages of a kdump-compressed file, unpacked when they are asked for."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from sevkvm import errors
from sevkvm.abi import kdump
from sevkvm.abi.x86 import PAGE_MASK, PAGE_NBYTES, PAGE_SHIFT
from sevkvm.dumpfile.contents import Missing
from sevkvm.dumpfile.spans import union
from sevkvm.dumpfile.unpack import DamagedPage, unpack_page

if TYPE_CHECKING:
    from sevkvm.dumpfile.bitmap import PageBitmap
    from sevkvm.dumpfile.image import Image

_CACHE_PAGES: Final = 4096  # 16 MiB: page tables are asked for again and again
_ZERO_PAGE: Final = bytes(PAGE_NBYTES)
_LEFT_OUT: Final = "the dump left this page out (filtered, or it could not be read)"
_ELSEWHERE: Final = "the page is in another file of the set"


class Layout(NamedTuple):
    """``ram``: the guest's pages; ``held``: those with a descriptor, the first at ``descs_offset``.

    pfns: the half-open range whose descriptors this file has. left_out_are_zeros: only zero pages were left out.
    """

    ram: PageBitmap
    held: PageBitmap
    descs_offset: int
    pfns: tuple[int, int]
    left_out_are_zeros: bool


class KdumpStore:
    """See ``Store``. A page that does not unpack is as one that is not there: reads are short before it."""

    def __init__(self, image: Image, layout: Layout) -> None:
        self._image = image
        self._layout = layout
        self._first_rank = layout.held.rank(layout.pfns[0])
        self._pages: OrderedDict[int, bytes] = OrderedDict()

    @property
    def ranges(self) -> Sequence[tuple[int, int]]:
        """See Store."""
        runs = [*self._layout.ram.runs(), *self._layout.held.runs()]
        return union([(first << PAGE_SHIFT, end << PAGE_SHIFT) for first, end in runs])

    def readinto(self, gpa: int, buffer: memoryview) -> int:
        """See Store."""
        done = 0
        while done < len(buffer):
            at = gpa + done
            page, _ = self._page(at >> PAGE_SHIFT)
            if page is None:
                break
            piece = page[at & PAGE_MASK : (at & PAGE_MASK) + len(buffer) - done]
            buffer[done : done + len(piece)] = piece
            done += len(piece)
        return done

    def why_missing(self, gpa: int) -> str:
        """See Store."""
        return self._page(gpa >> PAGE_SHIFT)[1]

    def missing(self) -> Sequence[Missing]:
        """See Store; pages that turn out to be damaged are not known before they are asked for."""
        layout = self._layout
        if layout.left_out_are_zeros:
            return []
        held = [(max(first, layout.pfns[0]), min(end, layout.pfns[1])) for first, end in layout.held.runs()]
        at, found = 0, []
        gaps: list[tuple[int, int]] = []
        for first, npages in union(held):
            gaps.append((at, first))
            at = first + npages
        gaps.append((at, 1 << 52 - PAGE_SHIFT))
        ram = union([*layout.ram.runs(), *layout.held.runs()])
        index = 0
        for start, stop in gaps:
            while index < len(ram) and sum(ram[index]) <= start:
                index += 1
            for first, npages in ram[index:]:
                if first >= stop:
                    break
                low, high = max(first, start), min(first + npages, stop)
                if low < high:
                    found.append(Missing(low << PAGE_SHIFT, high - low << PAGE_SHIFT, self._why(low)))
        return found

    def _why(self, pfn: int) -> str:
        return _ELSEWHERE if pfn in self._layout.held else _LEFT_OUT

    def _page(self, pfn: int) -> tuple[bytes | None, str]:
        """The page, or None and why."""
        layout = self._layout
        if pfn not in layout.held:
            if pfn not in layout.ram:
                return None, "the dump holds nothing there"
            return (_ZERO_PAGE, "") if layout.left_out_are_zeros else (None, _LEFT_OUT)
        if not layout.pfns[0] <= pfn < layout.pfns[1]:
            return None, _ELSEWHERE
        rank = layout.held.rank(pfn) - self._first_rank
        try:
            return self._load(layout.descs_offset + rank * kdump.DESC.size), ""
        except (DamagedPage, errors.BadDump) as error:
            problem = error.problem if isinstance(error, errors.BadDump) else str(error)
            return None, f"the page is damaged in the file: {problem}"

    def _load(self, desc_offset: int) -> bytes:
        desc = self._image.take(desc_offset, kdump.DESC.size, "its descriptor")
        offset, nbytes, flags, _ = kdump.DESC.unpack(desc)
        page = self._pages.get(offset)
        if page is not None:
            self._pages.move_to_end(offset)
            return page
        if nbytes > PAGE_NBYTES:
            raise DamagedPage(f"its descriptor says {nbytes} bytes")
        page = unpack_page(bytes(self._image.take(offset, nbytes, "its data")), flags)
        self._pages[offset] = page
        if len(self._pages) > _CACHE_PAGES:
            self._pages.popitem(last=False)
        return page
