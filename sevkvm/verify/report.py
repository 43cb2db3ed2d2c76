"""What a verification found: checks with an outcome and evidence, in groups, and the verdict."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sevkvm.verify.page import PageFinding


class Outcome(str, Enum):
    """PASS: shown to be so. FAIL: shown not to be so. SKIP: not shown either way."""

    PASS = "pass"
    FAIL = "fail"
    SKIP = "skip"


@dataclass(frozen=True)
class Check:
    """One thing that was looked at; ``id`` is its name for programs. ``required``: the verdict needs it to pass."""

    id: str
    title: str
    outcome: Outcome
    evidence: tuple[str, ...] = ()
    required: bool = False
    pages: tuple[PageFinding, ...] = ()


@dataclass(frozen=True)
class Group:
    """Checks of one kind."""

    title: str
    checks: tuple[Check, ...]

    @property
    def outcome(self) -> Outcome:
        """The worst: a failure, else what is required and was not shown, else whether anything was shown."""
        return worst(
            [check.outcome for check in self.checks if check.required or check.outcome is not Outcome.SKIP]
        )


@dataclass(frozen=True)
class Report:
    """All of it."""

    groups: tuple[Group, ...]

    def checks(self) -> Iterator[Check]:
        """Every check, in order."""
        for group in self.groups:
            yield from group.checks

    def passed(self, *, strict: bool = False) -> bool:
        """Nothing failed, and what is required passed; with ``strict``, nothing was skipped either."""
        checks = list(self.checks())
        if not any(check.required for check in checks):
            return False
        for check in checks:
            if check.outcome is Outcome.FAIL:
                return False
            if check.outcome is Outcome.SKIP and (check.required or strict):
                return False
        return True


def worst(outcomes: Sequence[Outcome]) -> Outcome:
    """FAIL before SKIP before PASS; SKIP of nothing."""
    for outcome in (Outcome.FAIL, Outcome.SKIP):
        if outcome in outcomes:
            return outcome
    return Outcome.PASS if outcomes else Outcome.SKIP
