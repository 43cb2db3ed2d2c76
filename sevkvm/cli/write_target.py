"""Where ``sevkvm write`` writes: which pages are private, which hold page tables, and what is there now."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sevkvm.abi.x86 import PAGE_MASK
from sevkvm.cli.run import warn
from sevkvm.errors import BadGuestData, RegistersUnavailable, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sevkvm.guest import Guest
    from sevkvm.memory.source import Span
    from sevkvm.memory.write import WritePlan
    from sevkvm.pages.classify import PageMap

_SAY_IT = "say it with --private or --shared: bytes written the wrong way are noise to the guest"


class Target(NamedTuple):
    """What was asked for. ``space`` is ``gva`` or ``gpa``; ``private`` is what the user says of a gpa, or None."""

    space: str
    address: int
    data: bytes
    private: bool | None
    scan: bool


class Planned(NamedTuple):
    """``table_gpas``: the pages of the plan that are known to hold page tables."""

    plan: WritePlan
    table_gpas: frozenset[int]


def plan_write(guest: Guest, target: Target) -> Planned:
    """Plan it for a guest that is held; warns of page tables, and of what the user says against them."""
    pages = _survey(guest) if target.scan else None
    if target.space == "gva":
        form = guest.paging()
        plan = guest.plan_virtual_write(target.address, target.data, form)
        gvas = [piece.gva for piece in plan.pieces if piece.gva is not None]
        tables = {step.table_gpa & ~PAGE_MASK for gva in gvas for step in guest.translate(gva, form).steps}
    else:
        plan = guest.memory.plan_write(_spans(guest, target, pages))
        tables = set()
    written = {piece.gpa & ~PAGE_MASK for piece in plan.pieces}
    if pages is not None:
        tables |= {gpa for gpa in written if pages.kind(gpa) == "table"}
    tables &= written
    for gpa in sorted(tables)[:3]:
        warn(f"the page of gpa 0x{gpa:x} holds a page table; the guest's TLBs may keep what it says now")
    return Planned(plan, frozenset(tables))


def require_expected(target: Target, plan: WritePlan, expected: bytes) -> None:
    """BadGuestData, naming the first address, unless these bytes are there."""
    for at, (wanted, found) in enumerate(zip(expected, plan.old, strict=True)):
        if wanted != found:
            raise BadGuestData(
                f"at {target.space} 0x{target.address + at:x} is 0x{found:02x}, not 0x{wanted:02x} as expected:"
                " nothing is written",
                help=f"there is: {plan.old[:64].hex(' ')}",
            )


def _survey(guest: Guest) -> PageMap | None:
    """What all vCPUs' page tables say of each page; None, with a warning, where they are not known."""
    from sevkvm.pages.classify import classify

    try:
        forms = guest.forms()
    except RegistersUnavailable as reason:
        warn(f"{reason}; whether this changes a page table is not known (name the tables with --cr3)")
        return None
    return classify(guest.memory, forms, guest.slots, plain_tables=True) if forms else None


def _spans(guest: Guest, target: Target, pages: PageMap | None) -> Iterator[Span]:
    """The pieces of a physical write that are written in one way."""
    from sevkvm.memory.source import Span

    start, end = target.address, target.address + len(target.data)
    if not guest.sev.encrypted:
        yield Span(start, False, target.data)
        return
    if target.private is not None:
        _warn_of_contradiction(start, end, target.private, pages)
        yield Span(start, target.private, target.data)
        return
    if pages is None:
        raise UsageError(f"no page table tells whether gpa 0x{start:x} is private or shared", help=_SAY_IT)
    done = start
    for gpa, stop, kind, private in pages.stretches(start, end):
        slot = guest.slots.find(gpa)
        if slot is not None and slot.readonly:
            break
        if kind == "conflict" or private is None:
            mapped = "both as private and as shared" if kind == "conflict" else "not at all"
            raise UsageError(f"the guest's page tables map gpa 0x{gpa:x} {mapped}", help=_SAY_IT)
        if gpa != done:
            break
        yield Span(gpa, private, target.data[gpa - start : stop - start])
        done = stop
    if done < end:  # no RAM, or ROM: the plan says so, with its address
        yield Span(done, True, target.data[done - start :])


def _warn_of_contradiction(start: int, end: int, private: bool, pages: PageMap | None) -> None:
    for gpa, _, _, mapped in pages.stretches(start, end) if pages is not None else ():
        if mapped is not None and mapped != private:
            ways = ("shared", "private")
            warn(f"the guest's page tables map gpa 0x{gpa:x} as {ways[mapped]}, not {ways[private]}")
            return
