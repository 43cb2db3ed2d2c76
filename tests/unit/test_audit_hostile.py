"""Tables made to keep an audit busy: it ends, lists little, and says what it did not look at."""

from __future__ import annotations

import pytest

from sevkvm.audit import Severity, Wanted, audit, locate, mappings, scene, sharing
from sevkvm.audit.job import MOST
from sevkvm.audit.rules import RULES
from tests.support.auditguest import audit_guest
from tests.support.tables import KIB4, NX, PS, RW, US, P, Tables

MIB = 1 << 20
KERNEL_HALF = 1 << 47
IMAGE_CUT = (
    "root 0x100000: the kernel's image from gva 0xffffffff88000000 on was not looked at, after 32768 pages"
)


def bomb(rights: int, other: int | None = None, cbit: int | None = 51) -> Tables:
    """One table a level, each of whose entries leads to the next: 512**4 pages; every second entry may differ."""
    tables = Tables(4, cbit)
    chain = [tables.root, *(tables.new_table() for _ in range(3))]
    for gpa, lower in zip(chain, [*chain[1:], 16 * MIB], strict=True):
        leaf = lower == 16 * MIB
        for index in range(512):
            entry = lower + (index * KIB4 if leaf else 0)
            differs = leaf and other is not None and index % 2
            tables.pages[gpa][index] = (
                entry | (other if differs and other is not None else rights) | tables.mask
            )
    return tables


def listed(tables: Tables) -> tuple[dict[str, int], tuple[str, ...], int]:
    """Findings listed by rule, what was cut, and how many errors were counted."""
    report = audit(audit_guest(tables), Wanted(symbols=False))
    counts: dict[str, int] = {}
    for finding in report.findings:
        counts[finding.rule.id] = counts.get(finding.rule.id, 0) + 1
        assert len(finding.places) <= 8
    return counts, report.cut, report.total(Severity.ERROR)


def test_a_bomb_of_equal_rights_is_a_few_runs() -> None:
    counts, cut, errors = listed(bomb(P | RW))
    assert (counts["SEVKVM001"], errors) == (2, 2)
    assert cut == (IMAGE_CUT,)


def test_a_bomb_that_maps_itself() -> None:
    tables = Tables(4, 51)
    tables.pages[tables.root] = [tables.root | P | RW | tables.mask] * 512
    counts, cut, _ = listed(tables)
    assert counts["SEVKVM003"] == MOST
    assert cut == (IMAGE_CUT,)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limits made small: a test is to reach them."""
    monkeypatch.setattr(scene, "RUNS_MAX", 4096)
    monkeypatch.setattr(mappings, "RUNS_MAX", 4096)
    monkeypatch.setattr(locate, "LEAVES_MAX", 4096)
    monkeypatch.setattr(sharing, "RANGES_MAX", 64)


@pytest.mark.usefixtures("small")
def test_a_bomb_whose_pages_all_differ_from_their_neighbours() -> None:
    report = audit(audit_guest(bomb(P | RW | US, P | RW)), Wanted(symbols=False))
    assert any("after 4096 runs of equal rights" in why for why in report.cut)
    wx, user = (report.unlisted(rule) for rule in RULES[:2])
    assert wx + user + 2 * MOST == 4096
    assert len(report.findings) <= 2 * MOST + 8


@pytest.mark.usefixtures("small")
def test_conflicts_without_end() -> None:
    """Every second page of RAM is mapped both ways, a terabyte away from the tables that say so first."""
    tables = Tables(4, 51)
    for page in range(512):
        gpa = 16 * MIB + 2 * page * KIB4
        tables.map(0x40_0000 + page * KIB4, gpa, user=True, nx=True)
        tables.map(0x4000_0000 + page * KIB4, gpa, user=True, nx=True, private=False)
    report = audit(audit_guest(tables), Wanted(symbols=False))
    conflicts = [finding for finding in report.findings if finding.rule.id == "SEVKVM008"]
    assert len(conflicts) == MOST
    assert all(len(finding.places) == 2 for finding in conflicts)
    assert report.cut == ("SEVKVM008: more than 64 ranges",)
    (shared,) = [finding for finding in report.findings if finding.rule.id == "SEVKVM011"]
    assert (shared.message, len(shared.places)) == ("2 MiB of RAM in 512 runs", 8)


@pytest.mark.usefixtures("small")
def test_a_place_that_is_not_found_in_time_is_told() -> None:
    tables = Tables(4, 51)
    for page in range(4100):
        tables.map(0x40_0000 + page * KIB4, 16 * MIB + page % 16 * KIB4, user=True, nx=True)
    tables.map(0x4000_0000, 24 * MIB, user=True, nx=True)
    tables.map(0x4000_1000, 24 * MIB, user=True, nx=True, private=False)
    report = audit(audit_guest(tables), Wanted(symbols=False))
    (conflict,) = [finding for finding in report.findings if finding.rule.id == "SEVKVM008"]
    assert conflict.places == ()
    assert "gpa 0x1800000 to 0x1801000" in conflict.message
    assert any("after 4096 pages" in why for why in report.cut)


def test_tables_full_of_reserved_bits() -> None:
    tables = Tables(4, 51)
    table = tables.new_table()
    # alternate, so that no two are alike
    tables.pages[table] = [(0x2000 << index % 2) | PS | P | NX for index in range(512)]
    tables.pages[tables.root] = [table | P | RW | US | tables.mask] * 512
    counts, cut, _ = listed(tables)
    assert counts["SEVKVM004"] == MOST
    assert cut == ()


def test_more_address_spaces_than_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scene, "SPACES_MAX", 2)
    builders = []
    for number in range(4):
        tables = Tables(4, 51, next_gpa=MIB * (1 + number))
        tables.map((1 << 64) - KERNEL_HALF, 16 * MIB + number * KIB4)
        builders.append(tables)
    report = audit(audit_guest(*builders), Wanted(symbols=False))
    assert sum(finding.rule.id == "SEVKVM001" for finding in report.findings) == 2
    assert report.cut == ("2 of 4 address spaces were not listed",)
