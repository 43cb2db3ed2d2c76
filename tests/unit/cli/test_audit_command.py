"""``sevkvm audit``: what it prints and writes, how it ends, and the shape of its SARIF."""

from __future__ import annotations

import json
import re

import pytest

from sevkvm.audit.rules import RULES
from tests.support.auditguest import audit_guest, vcpu_on
from tests.support.tables import KIB4, Tables
from tests.unit.cli.conftest import BASE, PAGE, SHARED_GPA, TABLES_END, TABLES_GPA
from tests.unit.cli.test_json_documented import documented, keys

MIB = 1 << 20
VMALLOC = 0xFFFF_C900_0000_0000
LEVELS = {"none", "note", "warning", "error"}


def planted(*, user=True, smep=True):
    """Two W+X pages, one that user mode reaches too, a shared device; SMEP off if asked."""
    tables = Tables(4, 51, next_gpa=32 * MIB)
    tables.map(VMALLOC, 6 * MIB)
    tables.map(VMALLOC + 2 * KIB4, 7 * MIB)
    tables.map(VMALLOC + 4 * KIB4, 0xFEE0_0000, nx=True, private=False)
    if user:
        tables.map(VMALLOC + 8 * KIB4, 8 * MIB, user=True, nx=True)
    vcpu = vcpu_on(tables)
    if not smep:
        vcpu.cr4 &= ~(1 << 20)
    return audit_guest(tables, vcpus=[vcpu], name="guest\x1b[31m")


@pytest.fixture
def bad(attached):
    attached.guest = planted()
    return attached


def test_a_real_guest_and_the_pretend_firmware(attached, run):
    """The other commands' guest: vCPUs without SMEP and SMAP, tables that map RAM and share one page of it."""
    result = run("audit", "--json", "--stats")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    by_rule = {finding["rule"]: finding for finding in found["findings"]}
    assert (found["complete"], found["roots"]) == (True, ["0x10000"])
    assert set(by_rule) == {f"SEVKVM{number:03}" for number in (11, 12, 15, 16, 17)}
    assert by_rule["SEVKVM015"]["vcpus"] == [0, 1]
    (shared,) = by_rule["SEVKVM011"]["places"]
    assert (shared["gva"], shared["gpa"]) == (hex(BASE + SHARED_GPA), hex(SHARED_GPA))
    assert (shared["size"], len(shared["entries"])) == (PAGE, 4)
    assert attached.left
    assert attached.held_when_left == 0
    # each table is decrypted once: all that looks at them shares the cache
    ntables = (TABLES_END - TABLES_GPA) // PAGE
    assert json.loads(result.stderr)["stats"]["table_commands"] <= ntables


def test_json_is_documented(bad, run):
    found = json.loads(run("audit", "--json").stdout)
    assert keys(found) - {"error", "warning", "note"} - documented("audit") == set()
    assert found["totals"] == {"error": 3, "warning": 0, "note": 1}
    assert found["counts"] == [
        {"rule": "SEVKVM001", "severity": "error", "count": 2},
        {"rule": "SEVKVM002", "severity": "error", "count": 1},
        {"rule": "SEVKVM017", "severity": "note", "count": 1},
    ]
    rules = json.loads(run("audit", "--rules", "--json").stdout)
    assert keys(rules) - documented("audit") == set()


def test_text_says_where_and_what_to_do(bad, run):
    result = run("audit")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == "SEVKVM001 kernel-writable-executable"
    assert lines[1] == "  error: a kernel mapping is writable and executable"
    assert lines[2].startswith(f"    gva {VMALLOC:#x} to {VMALLOC + KIB4:#x}, gpa 0x600000, 4 KiB, root 0x")
    assert lines[3].startswith("      PML4E 0x")
    assert any(line.startswith("  means: ") for line in lines)
    assert any(line.startswith("  do: ") for line in lines)
    assert "skipped SEVKVM010: no Linux kernel's VMCOREINFO was found" in lines
    # a name from outside does not steer the terminal
    assert lines[-1] == "guest\\x1b[31m: 3 errors, 0 warnings, 1 note"


@pytest.mark.parametrize(
    ("smep", "user", "fail_on", "status"),
    [
        (True, True, None, 0),
        (True, True, "error", 1),
        (True, True, "note", 1),
        (False, False, "warning", 1),
        (False, False, "error", 0),
    ],
)
def test_the_exit_status(attached, run, smep, user, fail_on, status):
    attached.guest = planted(user=user, smep=smep)
    args = ["--fail-on", fail_on] if fail_on else []
    ignored = ["--ignore", "SEVKVM001"]
    assert run("audit", *ignored, *args).exit_code == status


def test_findings_that_are_not_listed_count(bad, run):
    result = run("audit", "--max-findings", "1")
    assert "  and 1 more (--max-findings)" in result.stdout
    assert result.stdout.endswith(": 3 errors, 0 warnings, 1 note\n")


def test_tables_that_cannot_be_read(attached, run):
    tables = Tables(4, None, next_gpa=32 * MIB)
    tables.set_entry(VMALLOC, 3, 1 << 40 | 3)
    attached.guest = audit_guest(tables)
    result = run("audit")
    assert result.exit_code == 6
    assert "not looked at: 1 page tables cannot be read" in result.stdout
    assert run("audit", "--fail-on", "warning").exit_code == 1


@pytest.mark.parametrize("name", ["SEVKVM002", "sevkvm002", "kernel-user-accessible"])
def test_one_rule(bad, run, name):
    found = json.loads(run("audit", "--rule", name, "--json").stdout)
    assert [finding["rule"] for finding in found["findings"]] == ["SEVKVM002"]
    found = json.loads(run("audit", "--ignore", name, "--json").stdout)
    assert "SEVKVM002" not in {finding["rule"] for finding in found["findings"]}


@pytest.mark.parametrize(
    "args",
    [
        ("--rule", "SEVKVM999"),
        ("--rule", "SEVKVM001", "--ignore", "SEVKVM001"),
        ("--sarif", "-", "--json"),
        ("--max-findings", "0"),
        ("--fail-on", "everything"),
    ],
)
def test_what_makes_no_sense_is_refused_first(bad, run, args):
    assert run("audit", *args).exit_code == 2
    assert bad.options is None


def test_the_list_of_rules_needs_no_guest(attached, run):
    result = run("audit", "--rules")
    assert result.exit_code == 0
    heads = [line.split()[0] for line in result.stdout.splitlines() if line.startswith("SEVKVM")]
    assert heads == [rule.id for rule in RULES]
    assert attached.options is None


# ---- SARIF


def shape(log):
    """What the 2.1.0 schema requires of the objects that we write, and of their values."""
    assert set(log) == {"$schema", "version", "runs"}
    assert log["version"] == "2.1.0"
    for run in log["runs"]:
        driver = run["tool"]["driver"]
        assert isinstance(driver["name"], str)
        ids = [rule["id"] for rule in driver["rules"]]
        assert len(set(ids)) == len(ids)
        for rule in driver["rules"]:
            assert rule["defaultConfiguration"]["level"] in LEVELS
            for text in ("shortDescription", "fullDescription", "help"):
                assert rule[text]["text"].endswith(".")
        for invocation in run["invocations"]:
            assert isinstance(invocation["executionSuccessful"], bool)
            for told in invocation["toolExecutionNotifications"]:
                assert told["level"] in LEVELS
                assert told["message"]["text"]
                assert "id" in told.get("associatedRule", {"id": ""})
        for result in run["results"]:
            assert ids[result["ruleIndex"]] == result["ruleId"]
            assert result["level"] in LEVELS
            assert re.fullmatch(r"[^a-z].*\.", result["message"]["text"])
            for location in result["locations"]:
                location_shape(location)


def location_shape(location):
    assert set(location) <= {"physicalLocation", "logicalLocations", "properties"}
    if "physicalLocation" in location:
        address = location["physicalLocation"]["address"]
        assert 0 <= address["absoluteAddress"] < 1 << 53
        assert isinstance(address["length"], int)
    for logical in location.get("logicalLocations", []):
        assert {"name", "kind"} <= set(logical)
    assert isinstance(location.get("properties", {}), dict)


def test_sarif(bad, run, tmp_path):
    bad.guest = planted(smep=False)
    path = tmp_path / "audit.sarif"
    result = run("audit", "--sarif", str(path), "--max-findings", "1")
    assert result.exit_code == 0, result.stderr
    assert result.stdout
    assert path.stat().st_mode & 0o777 == 0o600
    log = json.loads(path.read_text())
    shape(log)
    (only,) = log["runs"]
    assert {found["ruleId"] for found in only["results"]} == {
        "SEVKVM001",
        "SEVKVM002",
        "SEVKVM015",
        "SEVKVM017",
    }
    first = only["results"][0]
    (location,) = first["locations"]
    assert location["logicalLocations"][0]["fullyQualifiedName"] == f"gva:{VMALLOC:#x}"
    assert location["physicalLocation"]["address"]["absoluteAddress"] == 6 * MIB
    assert location["properties"]["entries"][-1]["level"] == 1
    told = [each["message"]["text"] for each in only["invocations"][0]["toolExecutionNotifications"]]
    assert "SEVKVM010 was skipped: no Linux kernel's VMCOREINFO was found." in told
    assert "1 more findings of SEVKVM001 are counted, not listed." in told
    assert run("audit", "--sarif", str(path)).exit_code == 2
    assert run("audit", "--sarif", str(path), "--force").exit_code == 0


def test_sarif_alone_on_stdout(bad, run):
    log = json.loads(run("audit", "--sarif", "-", "--rule", "SEVKVM002", "--fail-on", "error").stdout)
    shape(log)
    assert [rule["id"] for rule in log["runs"][0]["tool"]["driver"]["rules"]] == ["SEVKVM002"]
    assert [found["ruleIndex"] for found in log["runs"][0]["results"]] == [0]


def test_what_is_cut_is_in_sarif_too(attached, run):
    tables = Tables(4, None, next_gpa=32 * MIB)
    tables.set_entry(VMALLOC, 3, 1 << 40 | 3)
    attached.guest = audit_guest(tables)
    result = run("audit", "--sarif", "-")
    log = json.loads(result.stdout)
    shape(log)
    assert result.exit_code == 6
    assert log["runs"][0]["properties"]["complete"] is False
    told = log["runs"][0]["invocations"][0]["toolExecutionNotifications"]
    assert [each["level"] for each in told if each["level"] != "note"] == ["warning"]
