"""Every guest-physical page, told by all that is known: page tables, memory slots, and the host's view of memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from sevkvm.errors import RegistersUnavailable
from sevkvm.pages.classify import classify, uniform
from sevkvm.pages.pagemap import PageKind, PageMap
from sevkvm.pages.ranges import sweep
from sevkvm.pages.untouched import ASKED, Progress, untouched

if TYPE_CHECKING:
    from sevkvm.guest import Guest
    from sevkvm.memory.source import SlotMap
    from sevkvm.pages.pagemap import Stretch

_ROM, _UNTOUCHED = 1, 2


class Survey(NamedTuple):
    """``pages`` has every page up to the end of the last slot, ROM, holes and untouched memory told.

    by_tables: what the page tables alone say. looked: the host's view was looked at, so UNTOUCHED can occur.
    why_no_tables: why no page table was read, or None.
    """

    pages: PageMap
    by_tables: PageMap
    looked: bool
    why_no_tables: str | None


class Tables(NamedTuple):
    """What a guest's page tables say; ``why`` is set where there are none."""

    pages: PageMap
    why: str | None


def by_tables(guest: Guest, reading: Callable[[int], None] = lambda count: None) -> Tables:
    """Classify a guest's RAM by its page tables, alive or in a dump; for as long as the guest stands still.

    ``reading`` is told how many tables have been read so far.

    Raises what ``Guest.forms`` raises, but for RegistersUnavailable.
    """
    why = "no vCPU uses page tables"
    try:
        forms = guest.forms()
    except RegistersUnavailable as reason:
        forms, why = [], str(reason)
    if not forms:
        return Tables(uniform(guest.slots, PageKind.UNMAPPED if guest.sev.encrypted else PageKind.PLAIN), why)
    return Tables(classify(guest.memory, forms, guest.slots, plain_tables=True, reading=reading), None)


def survey(
    guest: Guest, tables: Tables, *, look: bool = True, progress: Progress = lambda done, total: None
) -> Survey:
    """Add to what the tables say. ``look``: at the host's view of all memory; a dump of an encrypted guest has none.

    The guest may run meanwhile: a page that it writes is only not untouched any more.
    """
    never: Iterable[tuple[int, int]] = ()
    looked = look and guest.backing is not None
    if looked and guest.backing is not None:
        never = untouched(guest.memory, guest.backing, guest.slots, tables.pages, progress)
    pages = complete(tables.pages, guest.slots, never)
    return Survey(pages, tables.pages, looked, tables.why)


def complete(base: PageMap, slots: SlotMap, never: Iterable[tuple[int, int]] = ()) -> PageMap:
    """``base`` with ROM, untouched memory and holes.

    Page tables and conflicts are told wherever they are, ROM before anything else; what is shared is never untouched.
    """
    pages = PageMap(_filled(_overlaid(base, slots, never)))
    pages.conflicts, pages.scan = base.conflicts, base.scan
    pages.forms, pages.direct_maps = base.forms, base.direct_maps
    return pages


def _overlaid(base: PageMap, slots: SlotMap, never: Iterable[tuple[int, int]]) -> Iterator[Stretch]:
    end = max((slot.end for slot in slots), default=0)
    layers = (
        (_ROM, ((slot.gpa, slot.end) for slot in slots if slot.readonly)),
        (_UNTOUCHED, never),
        (0, ((0, end),)),
    )
    for start, stop, mask in sweep(layers):
        for gpa, until, kind, private in base.stretches(start, stop):
            if kind in (PageKind.TABLE, PageKind.CONFLICT):
                yield gpa, until, kind, private
            elif mask & _ROM:
                yield gpa, until, PageKind.ROM, private
            elif mask & _UNTOUCHED and kind in ASKED:
                yield gpa, until, PageKind.UNTOUCHED, private
            else:
                yield gpa, until, kind, private


def _filled(stretches: Iterable[Stretch]) -> Iterator[Stretch]:
    """With holes wherever there is nothing between gpa 0 and the end of memory."""
    position = 0
    for stretch in stretches:
        if stretch[0] > position:
            yield position, stretch[0], PageKind.HOLE, None
        yield stretch
        position = stretch[1]
