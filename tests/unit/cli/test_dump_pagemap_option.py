"""``dump --pagemap``: how each page was read, whole pages, without gaps, and ``pages --diff`` on it."""

from __future__ import annotations

import json

import pytest

from tests.unit.cli.conftest import (
    CBIT_POS,
    HIGH_GPA,
    HIGH_NBYTES,
    PAGE,
    SHARED_GPA,
    make_guest,
)
from tests.unit.cli.test_dump_unmapped_option import LOST_GPA, lose_a_page  # noqa: F401 (a fixture)
from tests.unit.cli.test_json_documented import documented, keys


def pagemap(run, tmp_path, *arguments):
    """The answer, and gpa of each page to (kind, read_as)."""
    result = run(
        "dump", "-o", str(tmp_path / "out"), "--pagemap", str(tmp_path / "map"), "--force", *arguments
    )
    assert result.exit_code in (0, 6), result.stderr
    told = json.loads((tmp_path / "map").read_text())
    found, at = {}, 0
    for each in told["runs"]:
        gpa = int(each["gpa"], 16)
        assert gpa == at, "no gaps"
        at += each["size"]
        if each["kind"] != "hole":
            found |= dict.fromkeys(range(gpa, at, PAGE), (each["kind"], each["read_as"]))
        else:
            assert each["read_as"] == "none"
    assert at == HIGH_GPA + HIGH_NBYTES
    return told, found


def test_each_page_as_it_was_read(attached, run, tmp_path, lose_a_page):  # noqa: F811
    told, found = pagemap(run, tmp_path)
    assert (tmp_path / "map").stat().st_mode & 0o777 == 0o600
    assert {path.name for path in tmp_path.iterdir()} == {"out", "map"}
    assert keys(told) - documented("dump --pagemap") == set()
    assert (told["sev"], told["cbit_pos"], told["unmapped"], told["cbit"]) == (
        "sev",
        CBIT_POS,
        "private",
        "keep",
    )
    assert found[SHARED_GPA] == ("shared", "shared")
    assert found[LOST_GPA] == ("unmapped", "private")
    assert found[HIGH_GPA] == found[0] == ("private", "private")
    assert ("table", "table") in found.values()
    assert {way for _, way in found.values()} == {"private", "shared", "table"}


@pytest.mark.parametrize(("unmapped", "way"), [("shared", "shared"), ("skip", "none")])
def test_what_no_table_reaches(attached, run, tmp_path, lose_a_page, unmapped, way):  # noqa: F811
    told, found = pagemap(run, tmp_path, "--unmapped", unmapped)
    assert told["unmapped"] == unmapped
    assert found.pop(LOST_GPA) == ("unmapped", way)
    assert "none" not in {way for _, way in found.values()}


def test_outside_of_the_range_nothing_was_read(attached, run, tmp_path):
    _, found = pagemap(run, tmp_path, "--gpa", f"{PAGE + 16}:{3 * PAGE}")
    assert {gpa for gpa, (_, way) in found.items() if way != "none"} == {2 * PAGE}


def test_a_page_that_cannot_be_read(attached, run, tmp_path):
    attached.guest = make_guest(attached)
    real = attached.guest.memory.readinto

    def readinto(gpa, private, buffer, ahead=0):
        if gpa <= 0x7000 < gpa + len(buffer):
            buffer = buffer[: 0x7000 - gpa]
        return real(gpa, private, buffer, ahead) if len(buffer) else 0

    attached.guest.memory.readinto = readinto
    _, found = pagemap(run, tmp_path)
    assert {gpa for gpa, (_, way) in found.items() if way == "none"} == {0x7000}
    assert found[0x7000] == ("private", "none")


def test_a_plain_guest_is_read_as_the_host_sees_it(attached, run, tmp_path):
    attached.guest = make_guest(attached, policy=None)
    told, found = pagemap(run, tmp_path)
    assert (told["sev"], told["cbit_pos"], told["cbit"]) == ("none", attached.guest.sev.cbit_pos, None)
    assert set(found.values()) == {("plain", "shared")}


def test_pages_diff_reads_it(attached, run, tmp_path):
    """A moment later one more page is shared."""
    pagemap(run, tmp_path)
    arguments = ("pages", "--tables-only", "--json", "--diff", str(tmp_path / "map"))
    assert json.loads(run(*arguments).stdout)["changes"] == []
    told = json.loads((tmp_path / "map").read_text())
    (run_of_it,) = (each for each in told["runs"] if each["kind"] == "shared")
    run_of_it["kind"] = "private"
    (tmp_path / "map").write_text(json.dumps(told))
    assert json.loads(run(*arguments).stdout)["changes"] == [
        {"gpa": hex(SHARED_GPA), "size": PAGE, "before": "private", "after": "shared"}
    ]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--pagemap", "-"), "needs the name of a file"),
        (("--pagemap", "/no/dir/map"), "is not a directory"),
        (("--pagemap", "map", "--gva", "0:1M"), "exclude each other"),
    ],
)
def test_where_it_cannot_go(attached, run, tmp_path, monkeypatch, arguments, text):
    monkeypatch.chdir(tmp_path)
    result = run("dump", "-o", "out", *arguments)
    assert result.exit_code == 2
    assert text in result.stderr
    assert attached.options is None
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(attached, run, tmp_path):
    (tmp_path / "map").write_text("precious")
    result = run("dump", "-o", str(tmp_path / "out"), "--pagemap", str(tmp_path / "map"))
    assert result.exit_code == 2
    assert attached.options is None
    assert (tmp_path / "map").read_text() == "precious"


def test_the_same_name_twice(attached, run, tmp_path):
    result = run("dump", "-o", str(tmp_path / "out"), "--pagemap", str(tmp_path / "out"), "--force")
    assert result.exit_code == 2
    assert attached.options is None
