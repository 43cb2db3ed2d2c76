"""What a Linux guest uses its pages for: cache, user data, free. In its own words: nothing checks them.

Source: Linux kernel/crash_core.c (v5.10 to v6.5), which puts what is needed into VMCOREINFO for makedumpfile; the
types are those of makedumpfile(8). Later kernels tell other things, and are refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final

from sevkvm.abi.x86 import PAGE_SHIFT
from sevkvm.errors import BadGuestData
from sevkvm.linux.pagestruct import PageStructs
from sevkvm.native import ffi, lib

if TYPE_CHECKING:
    from sevkvm.linux.space import KernelSpace
    from sevkvm.linux.vmcoreinfo import VmcoreInfo

BAD: Final = 32  # a type of its own: the kernel does not touch this memory any more, for it is broken
_LARGE: Final = 32 << 20  # guest memory whose structs are read at a time: half a MiB
_SMALL: Final = 2 << 20  # the least that the kernel adds or removes, so the array has no smaller holes
_OFFSETS: Final = {
    "flags": "page.flags",
    "mapping": "page.mapping",
    "mapcount": "page._mapcount",
    "private_data": "page.private",
    "compound_head": "page.compound_head",
    "order": "page.compound_order",
    "dtor": "page.compound_dtor",
}
_FLAGS: Final = {
    "lru": "PG_lru",
    "has_private": "PG_private",
    "slab": "PG_slab",
    "swapcache": "PG_swapcache",
    "swapbacked": "PG_swapbacked",
    "hwpoison": "PG_hwpoison",
}
_MAY_LACK: Final = frozenset({"PG_swapbacked", "PG_hwpoison"})


def page_types(
    space: KernelSpace, info: VmcoreInfo, level: int, extents: Iterable[tuple[int, int]]
) -> Iterator[tuple[int, int, int]]:
    """``(gpa, nbytes, type)``, ascending, of the pages in ``extents`` (``(gpa, nbytes)``) that ``level`` leaves out.

    level: a sum of 2 (cache), 4 (cache with private data), 8 (user data), 16 (free), and so is each type; or BAD.
    Pages that the kernel's array does not have are none of these. Raises BadGuestData if the note does not tell enough.
    """
    structs = PageStructs(space, info)
    layout = _layout(info)
    try:
        types = _PageTypes(layout, level)
    except ValueError as error:
        raise BadGuestData(f"the kernel's note contradicts itself: {error}") from error
    for gpa, nbytes in extents:
        for at, told in _read(space, structs, layout["nbytes"], gpa, gpa + nbytes):
            pfn = at >> PAGE_SHIFT
            for kind, run in groupby(types.of(pfn, told)):
                npages = sum(1 for _ in run)
                if kind:
                    yield pfn << PAGE_SHIFT, npages << PAGE_SHIFT, kind
                pfn += npages


def _read(
    space: KernelSpace, structs: PageStructs, struct_nbytes: int, gpa: int, end: int
) -> Iterator[tuple[int, bytes]]:
    """The structs of ``[gpa, end)`` as far as there are any, cut where blocks of pages are not."""
    while gpa < end:
        stop = min(gpa - gpa % _LARGE + _LARGE, end)
        try:
            yield gpa, space.read(structs.gva(gpa), (stop - gpa >> PAGE_SHIFT) * struct_nbytes)
        except BadGuestData:
            for at in range(gpa - gpa % _SMALL, stop, _SMALL):
                start, last = max(at, gpa), min(at + _SMALL, stop)
                try:
                    part = space.read(structs.gva(start), (last - start >> PAGE_SHIFT) * struct_nbytes)
                except BadGuestData:
                    continue
                yield start, part
        gpa = stop


def _layout(info: VmcoreInfo) -> dict[str, int]:
    layout = {"nbytes": _value(info, "SIZE(page)")}
    layout |= {field: _value(info, f"OFFSET({name})") for field, name in _OFFSETS.items()}
    for field, name in _FLAGS.items():
        missing = name in _MAY_LACK and f"NUMBER({name})" not in info.values
        layout[field] = 0 if missing else 1 << _value(info, f"NUMBER({name})", 63)
    layout["head"] = _value(info, "NUMBER(PG_head_mask)", (1 << 64) - 1)
    layout["buddy_mapcount"] = _signed(info, "NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)", None)
    layout["offline_mapcount"] = _signed(info, "NUMBER(PAGE_OFFLINE_MAPCOUNT_VALUE)", 0)
    layout["hugetlb_dtor"] = _signed(info, "NUMBER(HUGETLB_PAGE_DTOR)", -1)
    return layout


def _value(info: VmcoreInfo, key: str, most: int = 1 << 12) -> int:
    text = info.values.get(key, "")
    if not re.fullmatch(r"[0-9]{1,20}", text) or int(text) > most:
        raise BadGuestData(f"the kernel's note does not say {key}, which tells what pages are used for")
    return int(text)


def _signed(info: VmcoreInfo, key: str, default: int | None) -> int:
    text = info.values.get(key, "")
    if not text and default is not None:
        return default
    if not re.fullmatch(r"-?[0-9]{1,9}", text):
        raise BadGuestData(f"the kernel's note does not say {key}, which tells what pages are used for")
    return int(text)


class _PageTypes:
    """What Linux uses pages for, by its array of ``struct page``, from lower to higher pages.

    layout: the fields of ``struct sk_page_layout`` by name, offsets and masks. ValueError where a field would lie
    outside a struct page.
    """

    def __init__(self, layout: dict[str, int], level: int) -> None:
        fields = ("flags", "mapping", "private_data", "compound_head")
        self._nbytes = layout["nbytes"]
        if max(layout[name] + 8 for name in fields) > self._nbytes or (
            max(layout["mapcount"] + 4, layout["order"] + 1, layout["dtor"] + 1) > self._nbytes
        ):
            raise ValueError("fields outside of a struct page")
        self._layout: Any = ffi.new("struct sk_page_layout *", layout)
        self._level = level
        self._block: Any = ffi.new("struct sk_page_block *")

    def of(self, pfn: int, structs: bytes) -> bytes:
        """A byte a page from ``pfn`` on: 0 to keep it, else why not, a bit of the level (32: broken memory)."""
        npages = len(structs) // self._nbytes
        types = bytearray(npages)
        lib.sk_page_types(
            self._layout,
            self._level,
            pfn,
            ffi.from_buffer(structs),
            npages,
            self._block,
            ffi.from_buffer("uint8_t *", types, require_writable=True),
        )
        return bytes(types)
