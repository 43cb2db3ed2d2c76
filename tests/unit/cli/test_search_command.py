"""``sevkvm search``: what it prints, and how it ends."""

import json
import sys

import pytest

from tests.unit.cli.conftest import BASE, HIGH_GPA, SECRET_GPA, SHARED_GPA, make_guest

FOX = "the quick brown fox jumps over the lazy dog"


def test_each_match_is_a_line(attached, run):
    result = run("search", FOX, f"{SECRET_GPA}:+100")
    assert result.stdout == "".join(f"0x{SECRET_GPA + 43 * n:016x}: {FOX}\n" for n in range(2))
    assert result.stderr == ""
    assert result.exit_code == 0


def test_virtual_addresses_come_with_the_physical_one(attached, run):
    result = run("search", "--gva", FOX, f"{BASE + SECRET_GPA:#x}:+50")
    assert result.stdout == f"0x{BASE + SECRET_GPA:016x} gpa 0x{SECRET_GPA:x}: {FOX}\n"


def test_private_and_shared_pages_are_each_read_the_right_way(attached, run):
    assert run("search", "the lazy dog", "--max-count", "1").exit_code == 0
    result = run("search", "for all to see!", "--max-count", "1")
    assert result.stdout.startswith(f"0x{SHARED_GPA:016x}: for all to see!")


def test_the_host_sees_only_what_is_shared(attached, run):
    hidden = run("search", "--shared", "the lazy dog")
    assert (hidden.exit_code, hidden.stdout) == (1, "")
    seen = run("search", "--shared", "--gva", "for all", "--max-count", "1")
    assert seen.stdout.startswith(f"0x{BASE + SHARED_GPA:016x} gpa 0x{SHARED_GPA:x}: for all")


def test_context_is_a_hexdump(attached, run):
    result = run("search", "quick", "-C", "6", f"{SECRET_GPA}:+100", "--max-count", "1")
    assert result.stdout.splitlines() == [
        f"0x{SECRET_GPA + 4:016x}: quick",
        f"  {SECRET_GPA:016x}  74 68 65 20 71 75 69 63  6b 20 62 72 6f 77 6e     |the quick brown|",
    ]
    # what lies before a range is not searched and not shown
    result = run("search", "fox", "-C", "2", f"{SECRET_GPA + 16}:+4")
    assert result.stdout.splitlines()[1] == (
        f"  {SECRET_GPA + 16:016x}  66 6f 78 20                                       |fox |"
    )


def test_json_is_an_object_a_line(attached, run):
    result = run("search", "--json", "--hex", "74 68 65 20 ??", "-C", "1", f"{SECRET_GPA}:+43")
    first, second = map(json.loads, result.stdout.splitlines())
    assert first == {
        "address_space": "gpa",
        "address": hex(SECRET_GPA),
        "gpa": hex(SECRET_GPA),
        "size": 5,
        "bytes": b"the q".hex(),
        "rule": None,
        "before": "",
        "after": b"u".hex(),
    }
    assert bytes.fromhex(second["before"] + second["bytes"] + second["after"]) == b" the la"


def test_bytes_of_a_guest_cannot_steer_the_terminal(attached, run):
    result = run("search", "--regex", r"(?s).{40}", "--max-count", "20")
    assert result.exit_code == 0
    assert all(char.isprintable() for line in result.stdout.splitlines() for char in line)


def test_nothing_found_is_1(attached, run):
    result = run("search", "no such words in here")
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", "")


def test_unreadable_memory_is_told_and_is_6(attached, run):
    attached.guest = make_guest(attached)
    source = attached.guest.memory._private
    readinto = source.readinto

    def failing(gpa, hva, buffer, ahead=0):
        if gpa <= SECRET_GPA < gpa + len(buffer):
            return readinto(gpa, hva, buffer[: SECRET_GPA - gpa])
        return readinto(gpa, hva, buffer)

    source.readinto = failing
    result = run("search", "the lazy dog", f"{SECRET_GPA}:+8K")
    assert result.exit_code == 6
    assert f"gpa 0x{SECRET_GPA:x}:+0x1000 could not be read" in result.stderr


def test_it_tells_what_it_cost(attached, run):
    result = run("search", "--stats", "the lazy dog", f"{SECRET_GPA}:+4K")
    counts = dict(pair.split("=") for pair in result.stderr.split()[2:])
    assert counts["data_commands"] == "1"


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--hex", "zz"), "'zz' is not a byte"),
        (("--regex", "a*"), "matches nothing"),
        (("--hex", "-i", "00"), "exclude each other"),
        (("abc", "1"), "is not a range"),
        (("abc", f"{2 * HIGH_GPA}:+4K"), "no guest memory"),
        ((), "Missing argument"),
    ],
)
def test_wrong_usage(attached, run, args, says):
    result = run("search", *args)
    assert result.exit_code == 2
    assert says in result.stderr


RULES = """
rule animals { strings: $fox = "quick brown fox" $dog = { 6c 61 7a 79 ?? 64 } condition: all of them }
rule plants { strings: $none = "no such words in here" condition: $none }
"""


def test_yara_rules_tell_which_string_of_which_rule(attached, run, tmp_path):
    pytest.importorskip("yara")
    path = tmp_path / "rules.yar"
    path.write_text(RULES)
    result = run("search", "--yara", str(path), f"{SECRET_GPA}:+43")
    assert result.stdout.splitlines() == [
        f"0x{SECRET_GPA + 4:016x}: animals $fox: quick brown fox",
        f"0x{SECRET_GPA + 35:016x}: animals $dog: lazy d",
    ]
    told = [
        json.loads(line) for line in run("search", "--json", "--yara", str(path), "0:64K").stdout.splitlines()
    ]
    assert len(told) == 2 * (4096 // 43)
    assert {each["rule"] for each in told} == {"animals $fox", "animals $dog"}
    assert len({each["address"] for each in told}) == len(told)


def test_yara_rules_that_are_none_are_refused(attached, run, tmp_path):
    pytest.importorskip("yara")
    path = tmp_path / "rules.yar"
    path.write_text("rule { }")
    result = run("search", "--yara", str(path))
    assert result.exit_code == 2
    assert "no file of YARA rules" in result.stderr
    assert run("search", "--yara", str(path), "--hex", "00").exit_code == 2
    result = run("search", "--yara", str(tmp_path / "none"))
    assert result.exit_code == 2
    assert f"{tmp_path / 'none'}: No such file or directory" in result.stderr


def test_yara_is_an_extra(attached, run, monkeypatch):
    monkeypatch.setitem(sys.modules, "yara", None)
    result = run("search", "--yara", "rules.yar")
    assert result.exit_code == 2
    assert "hint: pip install 'sevkvm[yara]'" in result.stderr
