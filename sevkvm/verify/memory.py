"""Checks of memory at large: private pages spread over RAM, shared ones, and what can be said without the firmware."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from sevkvm.errors import MemoryFault
from sevkvm.verify.noise import measure
from sevkvm.verify.page import Expected, PageFinding, examine, look
from sevkvm.verify.report import Check, Outcome
from sevkvm.verify.samples import Candidate, buffers, private_samples, spread, written
from sevkvm.verify.tweak import TweakTest

if TYPE_CHECKING:
    from sevkvm.guest import Guest
    from sevkvm.verify.pagemap import Known

NO_TABLES = "which pages are private is not known: there are no page tables to tell"
_PRIVATE = "the host sees noise in private pages, the debug path their plaintext"
_SHARED = "shared pages are seen by the host as they are"


def private_checks(guest: Guest, known: Known, count: int) -> list[Check]:
    """``count`` private pages, and the tweak of the cipher between them."""
    tweak = TweakTest()
    if known.pages is None:
        # nobody says which pages are private; those that prove it by their contents do
        runs = [(slot.gpa, slot.nbytes) for slot in guest.slots]
        candidates: Iterable[Candidate] = (
            Candidate(gpa, "page of RAM", Expected.UNKNOWN) for gpa in written(guest, runs, count)
        )
    else:
        candidates = private_samples(guest, known, count)
    findings = _examine(guest, candidates, tweak)
    evidence = [known.why] if known.why else []
    if not findings:
        evidence.append("no private page was found that was ever written")
    return [
        Check(
            "private", _PRIVATE, outcome_of(findings), (*evidence, *tally(findings)), True, tuple(findings)
        ),
        tweak.check(),
    ]


def shared_check(guest: Guest, known: Known, count: int) -> Check:
    """At most ``count`` shared pages, written ones if there are any."""
    if known.pages is None:
        return Check("shared", _SHARED, Outcome.SKIP, (NO_TABLES,))
    runs = buffers(guest, known)
    if not runs:
        return Check(
            "shared", _SHARED, Outcome.SKIP, ("the page tables map no shared RAM but the firmware's",)
        )
    gpas = list(written(guest, runs, count)) or spread(runs, count)
    findings = _examine(guest, (Candidate(gpa, "shared page", Expected.SHARED) for gpa in gpas))
    return Check("shared", _SHARED, outcome_of(findings), tally(findings), pages=tuple(findings))


def conflict_check(known: Known) -> Check:
    """No page is mapped both ways."""
    title = "no page is mapped both private and shared"
    if known.pages is None:
        return Check("conflict", title, Outcome.SKIP, (NO_TABLES,))
    if known.pages.conflicts:
        gpa, _ = known.pages.conflicts[0]
        pages = sum(nbytes for _, nbytes in known.pages.conflicts) >> 12
        # the kernel may have its reasons; but what is written through the shared mapping, the host sees
        return Check("conflict", title, Outcome.SKIP, (f"{pages} pages are, the first at gpa 0x{gpa:x}",))
    if known.why:
        return Check("conflict", title, Outcome.SKIP, (known.why,))
    return Check("conflict", title, Outcome.PASS, ("by the page tables of the vCPUs",))


def host_view_check(guest: Guest, count: int) -> Check:
    """What the host sees, where nothing may be decrypted: all noise, or it stays open what the rest is."""
    title = "the host sees noise in all of RAM that was written"
    findings = []
    for gpa in written(guest, [(slot.gpa, slot.nbytes) for slot in guest.slots], count):
        try:
            seen = measure(look(guest.memory, gpa, decrypt=False).host)
        except MemoryFault as fault:
            findings.append(PageFinding(gpa, "page of RAM", Outcome.SKIP, f"cannot be read: {fault.reason}"))
            continue
        reason = "noise" if seen.is_noise else "data: shared, or not encrypted"
        outcome = Outcome.PASS if seen.is_noise else Outcome.SKIP
        findings.append(PageFinding(gpa, "page of RAM", outcome, f"the host sees {reason}", seen))
    noise = sum(finding.outcome is Outcome.PASS for finding in findings)
    told = f"{noise} of {len(findings)} pages are noise"
    outcome = Outcome.PASS if noise == len(findings) else Outcome.SKIP
    readable = [finding for finding in findings if finding.host is not None]
    if readable and not noise:
        outcome = Outcome.FAIL
    if not findings:
        outcome, told = Outcome.SKIP, "the host sees nothing but zeros, or the memory layout is not known"
    return Check("host-view", title, outcome, (told,), pages=tuple(findings))


def outcome_of(findings: Iterable[PageFinding]) -> Outcome:
    """One failure fails all; one page that shows it, and none that shows otherwise, passes."""
    outcomes = {finding.outcome for finding in findings}
    if Outcome.FAIL in outcomes:
        return Outcome.FAIL
    return Outcome.PASS if Outcome.PASS in outcomes else Outcome.SKIP


def tally(findings: Iterable[PageFinding]) -> tuple[str, ...]:
    """How many pages came to what."""
    counts = Counter(finding.outcome for finding in findings)
    words = {Outcome.PASS: "show it", Outcome.FAIL: "show otherwise", Outcome.SKIP: "show nothing"}
    told = [f"{counts[outcome]} {word}" for outcome, word in words.items() if counts[outcome]]
    return (f"of {counts.total()} pages {', '.join(told)}",) if told else ()


def _examine(
    guest: Guest, candidates: Iterable[Candidate], tweak: TweakTest | None = None
) -> list[PageFinding]:
    findings = []
    for gpa, what, expected in candidates:
        finding, views = examine(guest.memory, gpa, what, expected)
        findings.append(finding)
        if views is not None and tweak is not None:
            tweak.add(gpa, views)
    return findings
