"""What an audit found: findings with their evidence, rules that could not be asked, and what was cut short."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sevkvm.audit.rules import Rule, Severity


class Entry(NamedTuple):
    """A page-table entry as stored, C-bit included (``level`` 1 is a PTE)."""

    level: int
    table_gpa: int
    position: int
    entry: int


class Place(NamedTuple):
    """``nbytes`` of memory. ``gva``, ``gpa``: of the first byte, None where not known.

    roots: gpa of the top tables that map it so. entries: the walk to the first page; or the entry that is meant.
    """

    gva: int | None
    gpa: int | None
    nbytes: int
    roots: tuple[int, ...] = ()
    entries: tuple[Entry, ...] = ()


@dataclass(frozen=True)
class Finding:
    """One thing that a rule found; ``vcpus`` for rules about registers."""

    rule: Rule
    severity: Severity
    message: str
    places: tuple[Place, ...] = ()
    vcpus: tuple[int, ...] = ()


class Skipped(NamedTuple):
    """A rule that was not asked, and why."""

    rule: Rule
    why: str


@dataclass(frozen=True)
class Report:
    """All of it.

    ``counts``: findings of each rule and severity, those not listed included. ``cut``: why some of the guest was not
    looked at, in words; () if all was. ``roots``: the address spaces. ``kernel``: a Linux's release, if one was looked
    for and found.
    """

    findings: tuple[Finding, ...]
    counts: dict[tuple[Rule, Severity], int]
    skipped: tuple[Skipped, ...]
    cut: tuple[str, ...]
    roots: tuple[int, ...]
    kernel: str | None

    def total(self, severity: Severity) -> int:
        """Findings of a severity."""
        return sum(count for (_, each), count in self.counts.items() if each is severity)

    def reaches(self, severity: Severity) -> bool:
        """Is there a finding that severe, or worse?"""
        return any(each.rank >= severity.rank for _, each in self.counts)

    def unlisted(self, rule: Rule) -> int:
        """How many findings of the rule are counted only."""
        counted = sum(count for (each, _), count in self.counts.items() if each is rule)
        return counted - sum(finding.rule is rule for finding in self.findings)


class Findings:
    """Collects them; of each rule and severity the first ``most`` are kept, all are counted."""

    def __init__(self, rules: Collection[Rule], most: int) -> None:
        self._rules = set(rules)
        self._most = most
        self._found: list[Finding] = []
        self._counts: Counter[tuple[Rule, Severity]] = Counter()
        self._skipped: list[Skipped] = []
        self._cut: dict[str, None] = {}

    def wants(self, *rules: Rule) -> bool:
        """Is any of these rules asked?"""
        return not self._rules.isdisjoint(rules)

    def skip(self, rule: Rule, why: str) -> None:
        """Do not ask this rule."""
        if rule in self._rules:
            self._rules.discard(rule)
            self._skipped.append(Skipped(rule, why))

    def cut(self, why: str) -> None:
        """Something was not looked at."""
        self._cut[why] = None

    def counted(self, rule: Rule, severity: Severity | None = None) -> bool:
        """Count a finding; is it to be told in full by :meth:`add`?"""
        if rule not in self._rules:
            return False
        key = rule, severity or rule.severity
        self._counts[key] += 1
        return self._counts[key] <= self._most

    def add(
        self,
        rule: Rule,
        message: str,
        *places: Place,
        severity: Severity | None = None,
        vcpus: Sequence[int] = (),
    ) -> None:
        """Tell a finding that was :meth:`counted`."""
        self._found.append(Finding(rule, severity or rule.severity, message, places, tuple(vcpus)))

    def report(self, roots: Sequence[int], kernel: str | None) -> Report:
        """The worst first, then by rule."""
        found = sorted(self._found, key=lambda each: (-each.severity.rank, each.rule.id))
        skipped = sorted(self._skipped, key=lambda each: each.rule.id)
        return Report(
            tuple(found), dict(self._counts), tuple(skipped), tuple(self._cut), tuple(roots), kernel
        )
