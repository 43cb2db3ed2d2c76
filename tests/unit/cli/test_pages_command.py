"""``sevkvm pages``: what it prints and writes, and how it ends."""

import csv
import json
from dataclasses import replace

import pytest

from sevkvm.memory.source import SlotMap
from tests.unit.cli.conftest import (
    HIGH_GPA,
    HIGH_NBYTES,
    LOW_NBYTES,
    PAGE,
    SHARED_GPA,
    TABLES_GPA,
    make_guest,
)


class Backing:
    """All of the VMM's memory has pages."""

    def ranges(self, hva, nbytes):
        yield hva, nbytes, True


@pytest.fixture
def guest(attached):
    """A guest whose memory the host may look at."""
    attached.guest = make_guest(attached)
    attached.guest.backing = Backing()
    return attached.guest


def answer(run, *args):
    result = run("pages", "--json", *args)
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def kinds(runs):
    return [(int(run["gpa"], 16), run["size"], run["kind"]) for run in runs]


def test_the_summary_is_a_line_a_kind(guest, run):
    result = run("pages")
    assert result.exit_code == 0
    head, *lines = (line.split() for line in result.stdout.splitlines())
    assert head == ["KIND", "PAGES", "SIZE", "RUNS", "FIRST"]
    found = {line[0]: line[1] for line in lines}
    tables = int(found["table"])
    assert found == {
        "shared": "1",
        "table": str(tables),
        "private": str((LOW_NBYTES + HIGH_NBYTES) // PAGE - 1 - tables),
        "hole": str((HIGH_GPA - LOW_NBYTES) // PAGE),
    }
    assert f"{tables} table pages read, {tables} firmware commands" in result.stderr
    assert result.stderr.count("\n") == 1


def test_json_tells_every_run(guest, run):
    found = answer(run)
    tables_end = TABLES_GPA + found["tables"] * PAGE
    assert kinds(found["runs"]) == [
        (0, SHARED_GPA, "private"),
        (SHARED_GPA, PAGE, "shared"),
        (SHARED_GPA + PAGE, TABLES_GPA - SHARED_GPA - PAGE, "private"),
        (TABLES_GPA, tables_end - TABLES_GPA, "table"),
        (tables_end, LOW_NBYTES - tables_end, "private"),
        (LOW_NBYTES, HIGH_GPA - LOW_NBYTES, "hole"),
        (HIGH_GPA, HIGH_NBYTES, "private"),
    ]
    assert found["direct_maps"] == [{"gva": "0xffff888000000000", "size": 5 << 30}]
    assert found["roots"] == [hex(TABLES_GPA)]
    assert (found["sev"], found["cbit_pos"]) == ("sev", 51)
    assert (found["complete"], found["untouched_known"], found["live"]) == (True, True, False)
    assert found["firmware_commands"] == found["tables"]
    assert found["conflicts"] == []
    assert {total["kind"]: total["size"] for total in found["totals"]}["shared"] == PAGE


def test_list_and_csv_tell_the_same(guest, run):
    runs = kinds(answer(run)["runs"])
    rows = list(csv.DictReader(run("pages", "--csv").stdout.splitlines()))
    assert [(int(row["gpa"], 16), int(row["size"]), row["kind"]) for row in rows] == runs
    head, *lines = run("pages", "--list").stdout.splitlines()
    assert head.split() == ["GPA", "END", "SIZE", "KIND"]
    assert [(int(line.split()[0], 16), int(line.split()[1], 16), line.split()[-1]) for line in lines] == [
        (gpa, gpa + nbytes, kind) for gpa, nbytes, kind in runs
    ]


def test_pages_of_zeros_are_untouched_unless_nobody_looks(guest, run):
    held = []
    memory = guest.memory
    readinto = memory.readinto

    def zeros(gpa, private, buffer, ahead=0):
        held.append(guest._parts.holder.depth)
        done = readinto(gpa, private, buffer, ahead)
        if gpa <= 0x8000 < gpa + done:
            buffer[0x8000 - gpa : 0x8000 - gpa + PAGE] = bytes(PAGE)
        return done

    memory.readinto = zeros
    assert (0x8000, PAGE, "untouched") in kinds(answer(run)["runs"])
    assert set(held) == {0}  # the guest runs on while its host looks
    found = answer(run, "--tables-only")
    assert "untouched" not in {run["kind"] for run in found["runs"]}
    assert found["untouched_known"] is False


def test_a_read_only_slot_is_rom(guest, run):
    low, high = guest.slots
    guest.slots = SlotMap([low, high._replace(readonly=True)])
    assert kinds(answer(run)["runs"])[-1] == (HIGH_GPA, HIGH_NBYTES, "rom")


def test_the_guest_is_held_unless_live(guest, run):
    depths = []
    read_tables = guest.memory.read_tables

    def watched(gpas, *, keep=True):
        depths.append(guest._parts.holder.depth > 0)
        return read_tables(gpas, keep=keep)

    guest.memory.read_tables = watched
    for args, wanted in (((), True), (("--live",), False)):
        depths.clear()
        assert answer(run, *args)["live"] is not wanted
        assert set(depths) == {wanted}


def test_a_plain_guest(attached, run):
    attached.guest = make_guest(attached, policy=None)
    found = answer(run)
    assert {total["kind"] for total in found["totals"]} == {"plain", "table", "hole"}
    assert (found["sev"], found["cbit_pos"], found["firmware_commands"]) == ("none", None, 0)


def test_without_registers_and_without_a_kernel(attached, run):
    attached.guest = make_guest(attached, policy=4, no_registers="its registers are encrypted")
    result = run("pages", "--json")
    found = json.loads(result.stdout)
    assert found["no_tables"].startswith("its registers are encrypted, and no Linux kernel was found")
    assert {total["kind"] for total in found["totals"]} == {"unmapped", "hole"}
    assert "without page tables nothing tells private from shared" in result.stderr


def test_unreadable_tables_are_told_and_are_6(guest, run):
    read_tables = guest.memory.read_tables
    lost = TABLES_GPA + 2 * PAGE

    def losing(gpas, *, keep=True):
        pages = read_tables(gpas, keep=keep)
        return [None if gpa == lost else page for gpa, page in zip(gpas, pages, strict=True)]

    guest.memory.read_tables = losing
    result = run("pages", "--json")
    found = json.loads(result.stdout)
    assert result.exit_code == 6
    assert (found["complete"], found["unreadable_count"]) == (False, 1)
    assert "not all page tables could be read" in result.stderr


# ---- two moments


def test_diff_tells_what_has_changed(guest, run, tmp_path):
    earlier = answer(run)
    path = tmp_path / "before.json"
    for each in earlier["runs"]:
        if each["kind"] == "shared":
            each["kind"] = "private"
    path.write_text(json.dumps(earlier))
    found = answer(run, "--diff", str(path))
    changed = {"gpa": hex(SHARED_GPA), "size": PAGE, "before": "private", "after": "shared"}
    assert found["changes"] == [changed]
    assert found["totals"] == [{"before": "private", "after": "shared", "pages": 1, "size": PAGE, "runs": 1}]
    assert (
        f"private  shared  1      4 KiB  1     0x{SHARED_GPA:x}:+0x1000"
        in run("pages", "--diff", str(path)).stdout
    )
    assert run("pages", "--csv", "--diff", str(path)).stdout == (
        f"gpa,size,before,after\n0x{SHARED_GPA:x},4096,private,shared\n"
    )
    assert run("pages", "--list", "--diff", str(path)).stdout.splitlines()[1].split() == [
        *(f"0x{SHARED_GPA:016x}", f"0x{SHARED_GPA + PAGE:016x}", "4", "KiB", "private", "shared")
    ]


def test_diff_with_itself_is_nothing(guest, run, tmp_path):
    path = tmp_path / "before.json"
    path.write_text(run("pages", "--json").stdout)
    result = run("pages", "--diff", str(path))
    assert (result.exit_code, result.stdout) == (0, "")
    assert "nothing has changed" in result.stderr


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("no JSON", "not JSON"),
        ("[" * 100000, "not JSON"),
        ("[]", "no runs"),
        ('{"runs": 7}', "no runs"),
        ('{"runs": [{"gpa": "0x0", "size": 4096}]}', "without gpa, size and kind"),
        ('{"runs": [{"gpa": 0, "size": 4096, "kind": "private"}]}', "without gpa, size and kind"),
        ('{"runs": [{"gpa": "0x0", "size": 4096, "kind": "secret"}]}', "without gpa, size and kind"),
        ('{"runs": [{"gpa": "0x0", "size": 4095, "kind": "private"}]}', "no range of pages"),
        ('{"runs": [{"gpa": "-0x1000", "size": 4096, "kind": "private"}]}', "not above"),
        ('{"runs": [{"gpa": "0x0", "size": 18446744073709551616, "kind": "private"}]}', "no range of pages"),
    ],
)
def test_an_earlier_answer_is_checked_before_anybody_is_attached_to(attached, run, tmp_path, text, says):
    path = tmp_path / "before.json"
    path.write_text(text)
    result = run("pages", "--diff", str(path))
    assert result.exit_code == 2
    assert says in result.stderr
    assert attached.options is None


# ---- pictures


@pytest.mark.parametrize("layout", [(), ("--layout", "linear")])
def test_pictures_are_written_for_the_owner_alone(guest, run, tmp_path, layout):
    svg, html = tmp_path / "a.svg", tmp_path / "a.html"
    result = run("pages", "--svg", str(svg), "--html", str(html), *layout)
    assert result.exit_code == 0, result.stderr
    assert svg.read_text().startswith("<svg ")
    assert "sevkvm pages: guest-1" in svg.read_text()
    assert html.read_text().startswith("<!DOCTYPE html>")
    assert f'"layout": "{layout[1] if layout else "hilbert"}"' in html.read_text()
    assert [path.stat().st_mode & 0o777 for path in (svg, html)] == [0o600] * 2
    assert {path.name for path in tmp_path.iterdir()} == {"a.html", "a.svg"}


def test_an_existing_picture_is_refused_before_anybody_is_attached_to(attached, run, tmp_path):
    path = tmp_path / "a.svg"
    path.write_text("precious")
    assert run("pages", "--svg", str(path)).exit_code == 2
    assert attached.options is None
    assert path.read_text() == "precious"
    assert run("pages", "--svg", str(path), "--force").exit_code == 0
    assert path.read_text().startswith("<svg ")


def test_plot_is_letters_where_there_is_no_screen(guest, run):
    text = run("pages", "--plot").stdout
    assert "\x1b" not in text
    assert text.isascii()
    assert text.startswith("0x0 ")
    assert text.splitlines()[-1] == "S shared  T table  P private  . hole"


@pytest.mark.parametrize(
    "args",
    [
        ("--json", "--list"),
        ("--diff", "x", "--plot"),
        ("--svg", "-", "--json"),
        ("--svg", "-", "--html", "-"),
        ("--layout", "round"),
        ("--svg", "/no/dir/x"),
    ],
)
def test_wrong_usage(attached, run, args):
    result = run("pages", *args)
    assert result.exit_code == 2
    assert attached.options is None


def test_a_policy_that_forbids_debugging(attached, run, tmp_path):
    attached.guest = make_guest(attached, policy=1)
    path = tmp_path / "a.svg"
    assert run("pages", "--svg", str(path)).exit_code == 5
    assert not path.exists()


def test_without_the_c_bit_it_is_refused(attached, run):
    attached.guest = make_guest(attached)
    attached.guest.sev = replace(attached.guest.sev, cbit_pos=None)
    result = run("pages")
    assert result.exit_code == 5
    assert "--cbit-pos" in result.stderr
