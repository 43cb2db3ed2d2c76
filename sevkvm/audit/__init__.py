"""Findings about a guest's own page tables: what its kernel should not have mapped so."""

from sevkvm.audit.job import Wanted, audit
from sevkvm.audit.report import Entry, Finding, Place, Report, Skipped
from sevkvm.audit.rules import RULES, Rule, Severity

__all__ = ["RULES", "Entry", "Finding", "Place", "Report", "Rule", "Severity", "Skipped", "Wanted", "audit"]
