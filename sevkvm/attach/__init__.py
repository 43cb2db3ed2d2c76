"""The composition root: wire a Guest from outside, and unwind it in reverse.

Order matters: the VMM's monitor is asked before anything is stopped; the policy is checked before anything is
decrypted; what was attached, held or mapped is undone by the ``with`` that did it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sevkvm.attach.listing import GuestSummary, list_guests
    from sevkvm.attach.offline import DumpOptions, open_dump
    from sevkvm.attach.opening import open_guest
    from sevkvm.attach.options import AttachOptions, Needs, Warn

__all__ = [
    "AttachOptions",
    "DumpOptions",
    "GuestSummary",
    "Needs",
    "Warn",
    "list_guests",
    "open_dump",
    "open_guest",
]

# A command uses one of the three ways in; importing them all takes longer than reading a page.
_HOMES = {
    "AttachOptions": "options",
    "DumpOptions": "offline",
    "GuestSummary": "listing",
    "Needs": "options",
    "Warn": "options",
    "list_guests": "listing",
    "open_dump": "offline",
    "open_guest": "opening",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value
