"""Which pages of a guest are read as private: what ``dump`` and ``search`` do about it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sevkvm.cli.run import warn

if TYPE_CHECKING:
    from sevkvm.guest import Guest
    from sevkvm.pages.classify import PageMap


def page_map(guest: Guest, *, scan: bool) -> PageMap:
    """Which pages to decrypt. What no page table tells is taken as private: only the guest itself shares pages."""
    from sevkvm.errors import RegistersUnavailable
    from sevkvm.pages.classify import PageKind, classify, uniform

    if not guest.sev.encrypted or guest.contents is not None:
        return uniform(guest.slots, PageKind.PLAIN)  # a dump needs no decrypting
    if not scan:
        return uniform(guest.slots, PageKind.UNMAPPED)
    try:
        forms = guest.forms()
    except RegistersUnavailable as reason:
        warn(f"{reason}; without page tables all memory is taken as private (name the tables with --cr3)")
        forms = []
    else:
        if not forms:
            warn("no vCPU uses page tables; all memory is taken as private")
    if not forms:
        return uniform(guest.slots, PageKind.UNMAPPED)
    return classify(guest.memory, forms, guest.slots)
