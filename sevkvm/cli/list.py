"""``sevkvm list``: the KVM guests of this host."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sevkvm.cli.command import command as sevkvm_command
from sevkvm.cli.options import json_option, timeout_option, via_option
from sevkvm.cli.render import hexadecimal, print_json, print_table
from sevkvm.cli.run import say

if TYPE_CHECKING:
    from sevkvm.attach import GuestSummary

_HEADINGS = ("PID", "VM-FD", "NAME", "VCPUS", "SEV", "POLICY", "DEBUG", "NOTE")


@sevkvm_command(
    "list",
    examples="""
    sevkvm list
    # pids of the encrypted guests that may be debugged
    sevkvm list --json | jq '.[] | select(.sev != "none" and .debug_allowed) | .pid'
    """,
)
@timeout_option
@via_option
@json_option
def command(timeout: float, via: str | None, as_json: bool) -> None:
    """List the KVM guests of this host, what protects them, and whether they may be debugged.

    Guests of other users show only with their rights: run as root to see all. Asking what protects a guest stops one
    thread of its VMM for a fraction of a millisecond, unless a mirror VM can tell; where the host has no SEV, no VMM
    is touched.
    DEBUG is - where nothing needs to be allowed, and ? where it could not be asked.
    """
    from sevkvm import attach

    guests = attach.list_guests(timeout=timeout, via=via)
    if as_json:
        print_json([_as_json(guest) for guest in guests])
        return
    if not guests:
        say("no KVM guest found; those of other users show only to root")
        return
    print_table(_HEADINGS, map(_as_row, guests))


def _as_json(guest: GuestSummary) -> dict[str, Any]:
    return {
        "pid": guest.pid,
        "vm_fd": guest.vm_fd,
        "name": guest.name,
        "vcpus": guest.vcpus,
        "sev": guest.sev,
        "policy": hexadecimal(guest.policy),
        "debug_allowed": guest.debug_allowed,
        "reason": guest.reason,
    }


def _as_row(guest: GuestSummary) -> tuple[str, ...]:
    debug = {True: "yes", False: "no", None: "?" if guest.sev == "unknown" else "-"}[guest.debug_allowed]
    return (
        str(guest.pid),
        str(guest.vm_fd),
        guest.name or "-",
        str(guest.vcpus),
        guest.sev,
        hexadecimal(guest.policy) or "-",
        debug,
        guest.reason or "",
    )
