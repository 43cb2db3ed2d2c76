"""What the guest's own tables say of its pages, or why nobody can say."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sevkvm import errors
from sevkvm.pages.classify import classify

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sevkvm.guest import Guest
    from sevkvm.pages.classify import PageMap
    from sevkvm.paging.form import PagingForm


class Known(NamedTuple):
    """``pages`` is None where no tables can be read, and ``why`` says so; ``why`` too if some tables are missing."""

    pages: PageMap | None
    forms: Sequence[PagingForm]
    why: str = ""


def known_pages(guest: Guest) -> Known:
    """Classify the guest's RAM by the tables of every vCPU, or of the kernel that is found in memory."""
    try:
        forms = guest.forms()
    except (errors.RegistersUnavailable, errors.BadGuestData, errors.PlatformUnsupported) as error:
        return Known(None, (), error.message)
    if not forms:
        return Known(None, (), "no vCPU uses page tables")
    pages = classify(guest.memory, forms, guest.slots)
    found = pages.scan
    if found is None:
        return Known(pages, forms)
    if not found.table_gpas:
        return Known(None, forms, "no page table can be read")
    if found.unreadable_count or found.limits_hit:
        cut = f", limits reached: {', '.join(found.limits_hit)}" if found.limits_hit else ""
        return Known(pages, forms, f"{found.unreadable_count} page tables cannot be read{cut}")
    return Known(pages, forms)
