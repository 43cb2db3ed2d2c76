"""One thing that was looked at, and what came of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import Enum

from sevkvm import errors


class Outcome(str, Enum):
    """As ``--json`` spells it. FAIL would stop sevkvm; WARN would not, or not always; SKIP: nothing to look at."""

    PASS = "pass"
    FAIL = "fail"
    WARN = "warn"
    SKIP = "skip"


_BADNESS = (Outcome.SKIP, Outcome.PASS, Outcome.WARN, Outcome.FAIL)


@dataclass(frozen=True)
class Finding:
    """``help`` says what to do about it. ``forbidden``: a failure that nobody can repair on this host or guest."""

    name: str
    outcome: Outcome
    detail: str = ""
    help: str | None = None
    children: tuple[Finding, ...] = ()
    forbidden: bool = False

    def walk(self) -> Iterator[Finding]:
        """Itself and all below it."""
        yield self
        for child in self.children:
            yield from child.walk()


def passed(name: str, detail: str = "", *children: Finding) -> Finding:
    """It is as it must be."""
    return Finding(name, Outcome.PASS, detail, children=children)


def warned(name: str, detail: str, help: str | None = None, *children: Finding) -> Finding:
    """Worth knowing; sevkvm goes on."""
    return Finding(name, Outcome.WARN, detail, help, children)


def skipped(name: str, detail: str, help: str | None = None, *children: Finding) -> Finding:
    """Could not be told, or does not matter here."""
    return Finding(name, Outcome.SKIP, detail, help, children)


def failed(
    name: str, detail: str, help: str | None = None, *children: Finding, forbidden: bool = False
) -> Finding:
    """It would stop sevkvm."""
    return Finding(name, Outcome.FAIL, detail, help, children, forbidden)


def refused(name: str, error: errors.SevKvmError, *children: Finding) -> Finding:
    """A failure in the words of the error that sevkvm would end with."""
    return failed(name, str(error), error.help, *children, forbidden=error.exit_code == errors.EXIT_FORBIDDEN)


def heading(own: Finding, children: Iterable[Finding]) -> Finding:
    """``own`` over these children: as bad as the worst of them all."""
    below = tuple(children)
    worst = max((own.outcome, *(each.outcome for each in below)), key=_BADNESS.index)
    return replace(own, outcome=worst, children=below)


def grouped(name: str, children: Iterable[Finding], detail: str = "") -> Finding:
    """A heading with nothing of its own."""
    return heading(skipped(name, detail), children)


def exit_status(findings: Iterable[Finding]) -> int:
    """0: nothing fails. 5: something forbids it that no repair would change. 1: something is to be repaired."""
    failures = [
        each
        for finding in findings
        for each in finding.walk()
        # a heading fails because of what is below it
        if each.outcome is Outcome.FAIL and not any(child.outcome is Outcome.FAIL for child in each.children)
    ]
    if not failures:
        return 0
    return errors.EXIT_FORBIDDEN if any(each.forbidden for each in failures) else errors.EXIT_FAILURE
