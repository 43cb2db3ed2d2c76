"""The composition root: wire a Guest from outside, and unwind it in reverse.

Order matters: the VMM's monitor is asked before anything is stopped; the policy is checked before anything is
decrypted; what was attached, held or mapped is undone by the ``with`` that did it.
"""

from __future__ import annotations

from sevkvm.attach.listing import GuestSummary, list_guests
from sevkvm.attach.offline import DumpOptions, open_dump
from sevkvm.attach.opening import open_guest
from sevkvm.attach.options import AttachOptions, Warn

__all__ = ["AttachOptions", "DumpOptions", "GuestSummary", "Warn", "list_guests", "open_dump", "open_guest"]
