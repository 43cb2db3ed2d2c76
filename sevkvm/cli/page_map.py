"""Which pages of a guest are read as private: what ``dump`` and ``search`` do about it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sevkvm.cli.run import warn

if TYPE_CHECKING:
    from sevkvm.guest import Guest
    from sevkvm.pages.classify import PageMap


def page_map(guest: Guest, *, scan: bool, unmapped: str = "private") -> PageMap:
    """Which pages to decrypt. What no page table tells is taken as private: only the guest itself shares pages.

    unmapped: how they will be read, or ``skip``; then BadGuestData unless all page tables are known.
    """
    from sevkvm.errors import BadGuestData, RegistersUnavailable
    from sevkvm.pages.classify import PageKind, classify, uniform

    skip = unmapped == "skip"
    plain = not guest.sev.encrypted or guest.contents is not None  # a dump needs no decrypting
    if plain and not skip:
        return uniform(guest.slots, PageKind.PLAIN)
    if not scan:
        return uniform(guest.slots, PageKind.UNMAPPED)
    why = "no vCPU uses page tables"
    try:
        forms = guest.forms()
    except RegistersUnavailable as reason:
        forms, why = [], str(reason)
        if not skip:
            warn(f"{why}; without page tables all memory is taken as {unmapped} (name the tables with --cr3)")
    else:
        if not forms and not skip:
            warn(f"{why}; all memory is taken as {unmapped}")
    if not forms and skip:
        raise BadGuestData(f"it cannot be told which pages are unmapped: {why}", help=_HELP)
    if not forms:
        return uniform(guest.slots, PageKind.UNMAPPED)
    pages = classify(guest.memory, forms, guest.slots, plain_tables=skip)
    if skip and pages.scan and (pages.scan.unreadable_count or pages.scan.limits_hit):
        raise BadGuestData(
            "not all page tables could be read: pages that only they map would be left out", help=_HELP
        )
    return pages


_HELP = "use --unmapped private"
