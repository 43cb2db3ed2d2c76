"""Checks of a canary: bytes that the user knows to be in the guest, and that the host must not see."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from sevkvm.abi.x86 import PAGE_MASK, PAGE_NBYTES
from sevkvm.errors import MemoryFault, PageNotPresent, UsageError
from sevkvm.pages.classify import PageKind
from sevkvm.search.job import Search
from sevkvm.search.memory import Stretch
from sevkvm.search.pattern import LONGEST_LITERAL, Pattern
from sevkvm.verify.memory import NO_TABLES, outcome_of, tally
from sevkvm.verify.page import Expected, PageFinding, Views, examine
from sevkvm.verify.report import Check, Outcome

if TYPE_CHECKING:
    from sevkvm.guest import Guest
    from sevkvm.verify.pagemap import Known

LEAST_NBYTES: Final = 8  # in 1 TiB of noise, 8 given bytes occur by chance once in 2**24 times
_LEAST_VALUES: Final = 4
_MOST_PLACES: Final = 64


def check_canary(canary: bytes) -> None:
    """UsageError for one that is found everywhere, or anywhere by chance."""
    if not LEAST_NBYTES <= len(canary) <= LONGEST_LITERAL:
        raise UsageError(
            f"a canary of {len(canary)} bytes", help=f"take {LEAST_NBYTES} to {LONGEST_LITERAL} bytes"
        )
    if len(set(canary)) < _LEAST_VALUES:
        raise UsageError(
            f"the canary has only {len(set(canary))} different bytes: memory is full of such",
            help=f"take at least {_LEAST_VALUES} different ones",
        )


def find(guest: Guest, known: Known, canary: bytes, limit: int) -> tuple[list[int], str]:
    """Where in private memory it is (some places at most), decrypted; and why not all was searched, or nothing."""
    if known.pages is None:
        stretches = [Stretch(slot.gpa, slot.gpa, slot.nbytes, True) for slot in guest.slots]
    else:
        stretches = [
            Stretch(gpa, gpa, nbytes, True) for gpa, nbytes, private, _ in known.pages.runs() if private
        ]
    return _search(guest, stretches, canary, limit)


def hidden_check(guest: Guest, canary: bytes, limit: int) -> Check:
    """The host does not see it anywhere in the guest's RAM."""
    title = "the host sees the canary nowhere in the guest's RAM"
    stretches = [Stretch(slot.gpa, slot.gpa, slot.nbytes, False) for slot in guest.slots]
    places, short = _search(guest, stretches, canary, limit)
    if places:
        first = ", ".join(f"0x{gpa:x}" for gpa in places[:4])
        more = " and more" if len(places) > 4 else ""
        return Check("canary-hidden", title, Outcome.FAIL, (f"it sees it at gpa {first}{more}",), True)
    if not stretches:
        return Check("canary-hidden", title, Outcome.SKIP, ("the memory layout is not known",), True)
    if short:
        return Check("canary-hidden", title, Outcome.SKIP, (short,), True)
    told = f"{guest.slots.nbytes >> 10} KiB searched"
    return Check("canary-hidden", title, Outcome.PASS, (told,), True)


def found_checks(guest: Guest, known: Known, canary: bytes, places: Sequence[int], short: str) -> list[Check]:
    """It is where it was found or said to be (``places``), in private pages that the host sees as noise."""
    there = "the debug path returns the canary"
    if not places:
        told = short or "it is not in private memory"
        outcome = Outcome.SKIP if short else Outcome.FAIL
        return [Check("canary-found", there, outcome, (told,), True)]
    missing = [gpa for gpa in places if not _is_at(guest, gpa, canary)]
    if missing:
        told = f"it is not at gpa 0x{missing[0]:x}, decrypted"
        return [Check("canary-found", there, Outcome.FAIL, (told,), True), _mapped(known, places, canary)]
    findings = [_canary_page(guest, gpa) for gpa in _pages(places, canary)]
    first = ", ".join(f"0x{gpa:x}" for gpa in places[:4])
    more = f" and {len(places) - 4} more places" if len(places) > 4 else ""
    return [
        Check("canary-found", there, Outcome.PASS, (f"at gpa {first}{more}",), True),
        _mapped(known, places, canary),
        Check(
            "canary-noise",
            "the host sees noise in its page",
            outcome_of(findings),
            tally(findings),
            True,
            tuple(findings),
        ),
    ]


def resolve(guest: Guest, space: str | None, address: int, known: Known) -> int:
    """``--at`` as a gpa: as its prefix says, else a gpa if there is RAM, else a gva. PageNotPresent for a miss."""
    if space == "gpa" or (space is None and guest.slots.find(address) is not None):
        return address
    form = known.forms[0] if known.forms else None
    if form is None:
        raise UsageError(
            f"0x{address:x} is not in the guest's RAM, and without page tables it is no virtual address: {known.why}"
        )
    hit = guest.translate(address, form)
    if hit.gpa is None:
        raise PageNotPresent(address, level=0, index=0, entry=0, reason=hit.fault or "not-present")
    return hit.gpa


def _canary_page(guest: Guest, gpa: int) -> PageFinding:
    finding, views = examine(guest.memory, gpa, "page of the canary", Expected.PRIVATE)
    if finding.outcome is not Outcome.SKIP or views is None or finding.host is None:
        return finding
    # beside the canary it holds noise; but the canary was found there, and the host sees other blocks everywhere
    return _shown_by_canary(finding, views)


def _shown_by_canary(finding: PageFinding, views: Views) -> PageFinding:
    if views.untouched or views.equal_blocks or finding.host is None or not finding.host.is_noise:
        return finding
    reason = f"the host sees noise ({finding.host.entropy:.2f} bits a byte), the debug path the canary"
    return finding._replace(outcome=Outcome.PASS, reason=reason)


def _mapped(known: Known, places: Sequence[int], canary: bytes) -> Check:
    """The guest's tables say that its pages are private."""
    title = "its page is private by the guest's page tables"
    if known.pages is None:
        return Check("canary-private", title, Outcome.SKIP, (NO_TABLES,))
    kinds = {gpa: known.pages.kind(gpa) for gpa in _pages(places, canary)}
    for gpa, kind in kinds.items():
        if kind in (PageKind.SHARED, PageKind.CONFLICT, PageKind.PLAIN, None):
            told = f"the page at gpa 0x{gpa:x} is {kind.value if kind else 'no RAM'}"
            return Check("canary-private", title, Outcome.FAIL, (told,), True)
    unmapped = [gpa for gpa, kind in kinds.items() if kind is PageKind.UNMAPPED]
    if unmapped:
        told = f"no table that is known maps the page at gpa 0x{unmapped[0]:x}"
        return Check("canary-private", title, Outcome.SKIP, (told,))
    return Check("canary-private", title, Outcome.PASS, (f"{len(kinds)} pages",), True)


def _is_at(guest: Guest, gpa: int, canary: bytes) -> bool:
    try:
        return guest.memory.read(gpa, len(canary), private=True) == canary
    except MemoryFault:
        return False


def _pages(places: Iterable[int], canary: bytes) -> list[int]:
    pages = {page for gpa in places for page in range(gpa & ~PAGE_MASK, gpa + len(canary), PAGE_NBYTES)}
    return sorted(pages)


def _search(guest: Guest, stretches: Sequence[Stretch], canary: bytes, limit: int) -> tuple[list[int], str]:
    """Places, and in words what was not searched."""
    total = sum(stretch.nbytes for stretch in stretches)
    search = Search(guest.memory, _at_most(stretches, limit), Pattern(len(canary), literal=canary))
    places = []
    for match in search:
        places.append(match.address)
        if len(places) == _MOST_PLACES:
            return places, ""
    if total > limit:
        return places, f"only {limit >> 20} of {total >> 20} MiB were searched (--search-limit)"
    if search.lost_nbytes:
        return places, f"{search.lost_nbytes >> 10} KiB could not be read"
    return places, ""


def _at_most(stretches: Iterable[Stretch], limit: int) -> Iterable[Stretch]:
    for stretch in stretches:
        nbytes = min(stretch.nbytes, limit)
        if nbytes:
            yield stretch._replace(nbytes=nbytes)
        limit -= nbytes
