"""One verification from start to end."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sevkvm.memory.policy import SevKind
from sevkvm.verify import canary as canaries
from sevkvm.verify import memory, protection
from sevkvm.verify.pagemap import Known, known_pages
from sevkvm.verify.placed import placed, placed_check
from sevkvm.verify.report import Check, Group, Report
from sevkvm.verify.require import Requirement, range_check

if TYPE_CHECKING:
    from sevkvm.guest import Guest

CANARY: Final = "canary"


@dataclass(frozen=True)
class Wanted:
    """What to verify. ``at``: (``gpa``, ``gva`` or None, address) of the canary; None: it is searched for.

    ``place``: write it there first, and put back what was there; the guest is held all the time.

    ``samples``: pages a check looks at, at most. ``limit``: bytes that one search may read. ``untouched_ok``: pages
    of a required range that nobody ever wrote are no failure.
    """

    canary: bytes | None = None
    at: tuple[str | None, int] | None = None
    place: bool = False
    samples: int = 16
    ranges: tuple[Requirement, ...] = ()
    nodebug: bool = False
    es: bool = False
    limit: int = 4 << 30
    untouched_ok: bool = False


def verify(guest: Guest, wanted: Wanted) -> Report:
    """Look and judge. The guest is held while single pages are looked at, and runs while memory is searched.

    UsageError for a canary that is none and an ``at`` that leads nowhere; FirmwareError, IoctlError if the hardware
    fails on the way.
    """
    if wanted.canary is not None:
        canaries.check_canary(wanted.canary)
    said = [protection.encrypted_check(guest)]
    if wanted.es:
        said.append(protection.es_check(guest))
    said.append(protection.nodebug_check(guest) if wanted.nodebug else protection.debug_check(guest))
    groups = [Group("what KVM and the firmware say", tuple(said))]
    policy = guest.sev.policy
    readable = guest.sev.kind is not SevKind.SEV_SNP and (policy is None or policy.debug_allowed)
    groups += _decrypted(guest, wanted) if readable else _undecrypted(guest, wanted)
    return Report(tuple(groups))


def _decrypted(guest: Guest, wanted: Wanted) -> list[Group]:
    with ExitStack() as until_put_back:
        if wanted.place:
            until_put_back.enter_context(guest.held())
        groups, places = _looked(guest, wanted, until_put_back)
    if not wanted.place or not guest.sev.encrypted:
        return groups
    check = placed_check(places[0])
    return [Group(each.title, (check, *each.checks)) if each.title == CANARY else each for each in groups]


def _looked(guest: Guest, wanted: Wanted, until_put_back: ExitStack) -> tuple[list[Group], list[int]]:
    """All groups, and where the canary was looked for."""
    places: list[int] = []
    short = ""
    with guest.held():
        known = known_pages(guest)
        checks = memory.private_checks(guest, known, wanted.samples)
        checks += [memory.shared_check(guest, known, wanted.samples), memory.conflict_check(known)]
        required = _ranges(guest, known, wanted)
        if wanted.canary is not None and wanted.at is not None:
            places = [canaries.resolve(guest, *wanted.at, known)]
            if wanted.place and guest.sev.encrypted:
                until_put_back.enter_context(placed(guest, known, places[0], wanted.canary))
            found = canaries.found_checks(guest, known, wanted.canary, places, short)
    groups = [Group("memory", tuple(checks))]
    if wanted.canary is not None:
        hidden = canaries.hidden_check(guest, wanted.canary, wanted.limit)
        if wanted.at is None:
            places, short = canaries.find(guest, known, wanted.canary, wanted.limit)
            with guest.held():
                found = canaries.found_checks(guest, known, wanted.canary, places, short)
        groups.append(Group(CANARY, (*found, hidden)))
    if required:
        groups.append(Group("requirements", tuple(required)))
    return groups, places


def _undecrypted(guest: Guest, wanted: Wanted) -> list[Group]:
    """What can be told without the debug path."""
    with guest.held():
        checks = [memory.host_view_check(guest, wanted.samples)]
    groups = [Group("memory", tuple(checks))]
    if wanted.canary is not None:
        groups.append(Group(CANARY, (canaries.hidden_check(guest, wanted.canary, wanted.limit),)))
    unknown = Known(None, (), "the guest's page tables cannot be read without the debug path")
    required = _ranges(guest, unknown, wanted)
    return [*groups, Group("requirements", tuple(required))] if required else groups


def _ranges(guest: Guest, known: Known, wanted: Wanted) -> list[Check]:
    return [
        range_check(guest, known, each, wanted.samples, untouched_ok=wanted.untouched_ok)
        for each in wanted.ranges
    ]
