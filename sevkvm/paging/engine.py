"""The typed face of csrc/sk_list.h: one listing of one address space, step by step."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sevkvm.abi.x86 import PAGE_NBYTES
from sevkvm.native import Call, ffi, lib
from sevkvm.paging.decoder import decoder_for

if TYPE_CHECKING:
    from sevkvm.paging.form import PagingForm

BUFFER_NBYTES: Final = 1 << 16  # more than one record of any kind
_GVA_END: Final = 1 << 64


class Kind(IntEnum):
    """``enum sk_list_kind``: what :meth:`Engine.step` delivers."""

    LEAVES = 0
    RUNS = 1
    LEAVES_TEXT = 2
    RUNS_TEXT = 3


class State(IntEnum):
    """``enum sk_list_state``: how to go on."""

    AGAIN = 0
    TABLES = 1
    DONE = 2


class UnreadableTable(NamedTuple):
    """An entry (or the root) leads to a table of ``level`` at ``gpa``, where nothing can be read.

    ``gva``: the first address it would translate.
    """

    level: int
    gpa: int
    gva: int


class Totals(NamedTuple):
    """``struct sk_list_totals``; ``tables`` counts by level, index 0 is unused."""

    fetched: int
    refetched: int
    tables: tuple[int, ...]
    leaves: int
    reserved: int
    unreadable: int
    summaries_forgotten: bool


class Engine:
    """Owns a ``struct sk_list *``. A context manager; one thread at a time.

    ``ranges``: half-open, guest-virtual. ValueError if paging is off, or a range leaves 64 bits.
    """

    __slots__ = ("_buffer", "_pointer", "_used")

    def __init__(
        self,
        kind: Kind,
        form: PagingForm,
        ranges: Sequence[tuple[int, int]],
        *,
        tell_apart: int,
        cache_pages: int,
        summaries: int,
        unreadable: int,
    ) -> None:
        if not form.levels:
            raise ValueError("paging is off: there are no tables to list")
        for start, end in ranges:
            if not 0 <= start <= end <= _GVA_END:
                raise ValueError(f"not a range of 64-bit addresses: {start:#x} to {end:#x}")
        options: Any = ffi.new("struct sk_list_options *")
        options.kind, options.tell_apart, options.root_gpa = kind, tell_apart, form.root_gpa
        options.cache_pages, options.summaries, options.unreadable = cache_pages, summaries, unreadable
        inclusive = [(start, end - 1) for start, end in ranges if start < end]
        call = Call()
        out = ffi.new("struct sk_list **")
        call.check(
            lib.sk_list_create(
                decoder_for(form).paging,
                options,
                ffi.new("struct sk_list_range[]", inclusive),
                len(inclusive),
                out,
                call.err,
            )
        )
        self._pointer = out[0]
        self._buffer = ffi.new("char[]", BUFFER_NBYTES)
        self._used = ffi.new("size_t *")

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        lib.sk_list_destroy(self._pointer)
        self._pointer = ffi.NULL

    def step(self) -> tuple[State, bytes]:
        """Walk on for a few milliseconds at most: how to go on, and the records found (packed, or text)."""
        state = lib.sk_list_step(self._pointer, self._buffer, BUFFER_NBYTES, self._used)
        return State(state), bytes(ffi.buffer(self._buffer, self._used[0]))

    def wanted(self) -> array[int]:
        """The gpas of the table pages that are missing: page-aligned, distinct, 256 at most."""
        gpas = ffi.new("uint64_t **")
        count = lib.sk_list_wanted(self._pointer, ffi.cast("const uint64_t **", gpas))
        wanted = array("Q")
        wanted.frombytes(ffi.buffer(gpas[0], count * wanted.itemsize))
        return wanted

    def supply(self, pages: Sequence[bytes | None]) -> None:
        """Hand in all wanted pages, in their order; None for one that cannot be read."""
        pointer, supply, null = self._pointer, lib.sk_list_supply, ffi.NULL
        if len(pages) != len(self.wanted()):
            raise ValueError("not one page for each that is wanted")
        for page in pages:
            if page is None:
                supply(pointer, null)
            elif len(page) == PAGE_NBYTES:
                supply(pointer, page)
            else:
                raise ValueError("a page of tables has 4096 bytes")

    def totals(self) -> Totals:
        """What has been counted so far."""
        out: Any = ffi.new("struct sk_list_totals *")
        lib.sk_list_totals(self._pointer, out)
        return Totals(
            out.fetched,
            out.refetched,
            tuple(out.tables),
            out.leaves,
            out.reserved,
            out.unreadable,
            bool(out.summaries_forgotten),
        )

    def unreadable(self) -> list[UnreadableTable]:
        """The unreadable tables met so far, as many as are listed."""
        out: Any = ffi.new("struct sk_list_totals *")
        lib.sk_list_totals(self._pointer, out)
        found = lib.sk_list_unreadable(self._pointer)
        return [
            UnreadableTable(found[i].level, found[i].gpa, found[i].gva) for i in range(out.unreadable_listed)
        ]
