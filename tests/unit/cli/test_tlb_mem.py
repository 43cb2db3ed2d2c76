"""``sevkvm tlb`` and ``sevkvm mem`` on a guest in this process, whose every page is known."""

import csv
import functools
import io
import json
import threading

import pytest

from sevkvm import errors
from sevkvm.cli import listing_outlet, listing_standing, listing_summary
from sevkvm.lab.tables import TableBuilder
from sevkvm.paging.form import PagingForm, PagingMode
from tests.unit.cli import conftest
from tests.unit.cli.conftest import (
    BASE,
    HIGH_GPA,
    HIGH_NBYTES,
    LOW_NBYTES,
    PAGE,
    SHARED_GPA,
    TABLES_END,
    TABLES_GPA,
    make_guest,
    pattern,
)

PAGES = [*range(0, LOW_NBYTES, PAGE), *range(HIGH_GPA, HIGH_GPA + HIGH_NBYTES, PAGE)]
MISSING_GPA = 0xF000_0000
PATIENCE = 20
both = pytest.mark.parametrize("name", ["tlb", "mem"])


@pytest.fixture
def odd(attached, monkeypatch):
    """A guest with rights of every kind, pages of other sizes, and tables that cannot be read."""

    def build_ram(cbit_pos):
        tables = TableBuilder(4, TABLES_GPA, TABLES_END, cbit_pos)
        tables.map(0x1000, 0x5000, user=True, nx=False)
        tables.map(0x2000, 0x6000, user=True, nx=False, private=False)
        tables.map(0x3000, 0x7000, user=True, writable=False)
        tables.map(0x200000, 0x200000, 1 << 21, user=True, nx=False, more=1 << 12)  # PAT
        tables.map(0x40000000, 0x40000000, 1 << 30, writable=False)
        entries = tables._tables[TABLES_GPA]
        for index in range(256, 263):
            entries[index] = MISSING_GPA + index * PAGE | 0x3 | tables.cbit
        entries[300] = 0x83 | tables.cbit  # PS where there is none
        ram = pattern(LOW_NBYTES, 1)
        for gpa, data in tables.pages():
            ram[gpa : gpa + PAGE] = data
        return {0: bytes(ram), HIGH_GPA: bytes(HIGH_NBYTES)}, tables.root_gpa | tables.cbit

    monkeypatch.setattr(conftest, "build_ram", build_ram)
    attached.guest = make_guest(attached)
    return attached.guest


def info_tlb(pages) -> str:
    return "".join(f"{BASE + gpa:016x}: {gpa:016x} X--DA---W\n" for gpa in pages)


# ---- what is listed


@pytest.mark.parametrize("policy", [None, 0])
def test_text_is_that_of_qemus_monitor(attached, run, policy):
    attached.guest = make_guest(attached, policy=policy)
    result = run("tlb")
    assert (result.exit_code, result.stdout, result.stderr) == (0, info_tlb(PAGES), "")
    attached.guest = make_guest(attached, policy=policy)
    result = run("mem")
    assert result.stdout.splitlines() == [
        f"{BASE:016x}-{BASE + LOW_NBYTES:016x} {LOW_NBYTES:016x} -rw",
        f"{BASE + HIGH_GPA:016x}-{BASE + HIGH_GPA + HIGH_NBYTES:016x} {HIGH_NBYTES:016x} -rw",
    ]
    assert (result.exit_code, result.stderr) == (0, "")


def test_ranges(attached, run):
    ranges = [f"{BASE:#x}:+8K", f"{BASE + HIGH_GPA:#x}:{BASE + HIGH_GPA + PAGE:#x}"]
    assert run("tlb", *ranges).stdout == info_tlb([0, PAGE, HIGH_GPA])
    assert run("mem", *ranges).stdout.splitlines() == [
        f"{BASE:016x}-{BASE + 2 * PAGE:016x} {2 * PAGE:016x} -rw",
        f"{BASE + HIGH_GPA:016x}-{BASE + HIGH_GPA + PAGE:016x} {PAGE:016x} -rw",
    ]


def test_columns_of_pages(odd, run):
    result = run("tlb", "--columns")
    assert result.stdout.splitlines() == [
        "GVA                 GPA               SIZE  C-BIT    RIGHTS  FLAGS",
        "0x0000000000001000  0x5000           4 KiB  private  urwx    P RW US A D",
        "0x0000000000002000  0x6000           4 KiB  shared   urwx    P RW US A D",
        "0x0000000000003000  0x7000           4 KiB  private  ur--    P US A D NX",
        "0x0000000000200000  0x200000         2 MiB  private  urwx    P RW US A D PS PAT",
        "0x0000000040000000  0x40000000       1 GiB  private  -r--    P A D PS NX",
    ]


def test_columns_of_runs(odd, run):
    assert run("mem", "--columns").stdout.splitlines() == [
        "GVA                 END                        SIZE  C-BIT    RIGHTS  PAGE",
        "0x0000000000001000  0x0000000000002000        4 KiB  private  urwx    4 KiB",
        "0x0000000000002000  0x0000000000003000        4 KiB  shared   urwx    4 KiB",
        "0x0000000000003000  0x0000000000004000        4 KiB  private  ur--    4 KiB",
        "0x0000000000200000  0x0000000000400000        2 MiB  private  urwx    2 MiB",
        "0x0000000040000000  0x0000000080000000        1 GiB  private  -r--    1 GiB",
    ]


def test_columns_of_a_plain_guest_do_not_speak_of_sharing(attached, run):
    attached.guest = make_guest(attached, policy=None)
    assert run("mem", "--columns").stdout.splitlines()[1].split()[4:] == ["-", "-rw-", "4", "KiB"]
    assert {run_["private"] for run_ in json.loads(run("mem", "--json").stdout)} == {None}
    assert run("mem", "--csv").stdout.splitlines()[1].split(",")[4] == ""


def test_json_of_pages(odd, run):
    text = run("tlb", "--json").stdout
    pages = json.loads(text)
    assert pages[1] == {
        "gva": "0x2000",
        "gpa": "0x6000",
        "page_size": 4096,
        "level": 1,
        "private": False,
        "writable": True,
        "user": True,
        "nx": False,
        "entry": "0x6067",
        "flags": ["P", "RW", "US", "A", "D"],
    }
    assert [(page["gva"], page["page_size"], page["level"]) for page in pages] == [
        ("0x1000", 4096, 1),
        ("0x2000", 4096, 1),
        ("0x3000", 4096, 1),
        ("0x200000", 1 << 21, 2),
        ("0x40000000", 1 << 30, 3),
    ]
    assert len(text.splitlines()) == len(pages) + 2  # one a line


def test_json_of_runs(odd, run):
    runs = json.loads(run("mem", "--json").stdout)
    assert runs[3] == {
        "gva": "0x200000",
        "end": "0x400000",
        "size": 1 << 21,
        "page_size": 1 << 21,
        "private": True,
        "writable": True,
        "user": True,
        "nx": False,
    }
    assert len(runs) == 5


@both
def test_csv_is_json_in_rows(odd, run, name):
    rows = list(csv.DictReader(io.StringIO(run(name, "--csv").stdout)))
    objects = json.loads(run(name, "--json").stdout)

    def plain(value):
        return " ".join(value) if isinstance(value, list) else str(int(value) if value is not None else "")

    expected = [
        {key: value if isinstance(value, str) else plain(value) for key, value in found.items()}
        for found in objects
    ]
    assert rows == expected


def test_summary(odd, run):
    result = run("mem", "--summary")
    assert result.stdout.splitlines() == [
        f"paging:  4level, top table at gpa 0x{TABLES_GPA:x}",
        "tables:  4 (16 KiB): 1 PML4, 1 PDP, 1 PD, 1 PT",
        "pages:   3 of 4 KiB, 1 of 2 MiB, 1 of 1 GiB",
        "mapped:  1.0 GiB: 2.0 MiB user, 1 GiB kernel",
        "C-bit:   1.0 GiB private, 4 KiB shared",
        "rights:  2.0 MiB writable, 2.0 MiB executable",
        "W+X:     2.0 MiB in 2 ranges",
        "         0x1000:0x3000 (8 KiB)",
        "         0x200000:0x400000 (2 MiB)",
    ]
    assert result.exit_code == 6


@both
def test_summary_as_json(odd, run, name):
    answer = json.loads(run(name, "--summary", "--json").stdout)
    lost = [
        {"level": 3, "gpa": hex(MISSING_GPA + index * PAGE), "gva": hex((0xFFFF << 48) + (index << 39))}
        for index in range(256, 263)
    ]
    assert answer == {
        "paging_mode": "4level",
        "root_gpa": hex(TABLES_GPA),
        "tables": [{"level": level, "count": 1, "size": PAGE} for level in (4, 3, 2, 1)],
        "pages": [
            {"page_size": 4096, "count": 3},
            {"page_size": 1 << 21, "count": 1},
            {"page_size": 1 << 30, "count": 1},
        ],
        "mapped": (1 << 30) + (1 << 21) + 3 * PAGE,
        "user": (1 << 21) + 3 * PAGE,
        "kernel": 1 << 30,
        "private": (1 << 30) + (1 << 21) + 2 * PAGE,
        "shared": PAGE,
        "writable": (1 << 21) + 2 * PAGE,
        "executable": (1 << 21) + 2 * PAGE,
        "wx": {
            "size": (1 << 21) + 2 * PAGE,
            "count": 2,
            "first": [{"gva": "0x1000", "end": "0x3000"}, {"gva": "0x200000", "end": "0x400000"}],
        },
        "unreadable": lost,
        "unreadable_count": 7,
        "reserved": 1,
        "limits_hit": [],
        "complete": False,
        "live": False,
    }


def test_a_summary_gives_up_on_too_many_runs(odd, run, monkeypatch):
    monkeypatch.setattr(listing_summary, "MOST_RUNS", 2)
    monkeypatch.setattr(
        listing_summary, "add_up", functools.partial(listing_summary.add_up, most=listing_summary.MOST_RUNS)
    )
    result = run("mem", "--summary", "--json", "0:0x80000000")
    assert (result.exit_code, json.loads(result.stdout)["complete"]) == (6, False)
    assert "added up no further than gva 0x3000, after 2 runs" in result.stderr


# ---- what else is told


@both
@pytest.mark.parametrize("style", [(), ("--columns",), ("--json",), ("--csv",), ("--summary",)])
def test_tables_that_cannot_be_read_are_told(odd, run, name, style):
    result = run(name, *style)
    assert result.exit_code == 6
    lines = result.stderr.splitlines()
    assert (
        lines[0]
        == "sevkvm: warning: 7 page tables could not be read; what would be mapped there is not listed"
    )
    assert lines[1] == f"sevkvm:   level 3, gpa 0x{MISSING_GPA + 0x100000:x}, for gva 0xffff800000000000"
    assert lines[6] == "sevkvm:   and 2 more"
    assert lines[7].startswith("sevkvm: note: 1 entry has reserved bits set")
    assert len(lines) == 8


@both
@pytest.mark.parametrize("style", [(), ("--columns",), ("--json",), ("--csv",)])
def test_a_limit_is_told(odd, run, name, style):
    result = run(name, *style, "--limit", "2", "0:0x80000000")
    assert result.exit_code == 0
    extra = {(): 0, ("--columns",): 1, ("--json",): 2, ("--csv",): 1}[style]
    assert len(result.stdout.splitlines()) == 2 + extra
    assert result.stderr == "sevkvm: stopped after 2 lines; there is more\n"
    if style == ("--json",):
        assert len(json.loads(result.stdout)) == 2
    assert run(name, *style, "--limit", "5", "0:0x80000000").stderr == ""


@both
def test_paging_off(attached, run, monkeypatch, name):
    attached.guest = make_guest(attached)
    monkeypatch.setattr(attached.guest, "paging", lambda: PagingForm(PagingMode.OFF, 0))
    result = run(name)
    assert (result.exit_code, result.stdout, result.stderr) == (0, "PG disabled\n", "")
    told = "sevkvm: note: paging is off: guest-virtual addresses are guest-physical ones\n"
    for style, stdout in (("--json", "[]\n"), ("--summary", "")):
        result = run(name, style)
        assert (result.exit_code, result.stdout, result.stderr) == (0, stdout, told)
    answer = json.loads(run(name, "--summary", "--json").stdout)
    assert (answer["paging_mode"], answer["root_gpa"], answer["mapped"]) == ("none", None, 0)


def test_the_tables_are_read_as_paging_says(attached, run):
    # each 8-byte entry is two of 4 bytes, the upper of which (C-bit, NX) are not present
    answer = json.loads(run("mem", "--summary", "--json", "--paging", "32").stdout)
    assert (answer["paging_mode"], answer["root_gpa"]) == ("32", hex(TABLES_GPA))
    assert [table["level"] for table in answer["tables"]] == [2, 1]
    assert run("tlb", "--paging", "none").stdout == "PG disabled\n"


@both
def test_nothing_mapped(attached, run, name):
    assert run(name, "0:1G").stdout == ""
    assert run(name, "--json", "0:1G").stdout == "[]\n"
    assert len(run(name, "--columns", "0:1G").stdout.splitlines()) == 1
    assert len(run(name, "--csv", "0:1G").stdout.splitlines()) == 1


@both
@pytest.mark.parametrize(
    "args",
    [
        "--columns --csv",
        "--columns --json",
        "--csv --json",
        "--summary --csv",
        "--summary --limit 5",
        "--live --hold 2",
        "--limit 0",
        "--hold 0",
        "0x1000",
        "2M:1M",
    ],
)
def test_contradictions_are_refused_before_anything_is_attached(attached, run, name, args):
    result = run(name, *args.split())
    assert result.exit_code == 2
    assert attached.options is None


# ---- standing still


def watch(guest):
    """Whether the guest is held at each fetch of tables."""
    held = []
    read, holder = guest.memory.read_tables, guest._parts.holder

    def read_tables(*args, **settings):
        held.append(holder.depth > 0)
        return read(*args, **settings)

    guest.memory.read_tables = read_tables
    return held


@both
@pytest.mark.parametrize("args", [(), ("--json",), ("--summary",)])
def test_the_guest_stands_still_unless_live(attached, run, name, args):
    for more, expected in ((), True), (("--live",), False):
        attached.guest = make_guest(attached)
        held = watch(attached.guest)
        result = run(name, *args, *more)
        assert (result.exit_code, result.stderr) == (0, "")
        assert set(held) == {expected}
        assert attached.guest._parts.holder.depth == 0


@both
def test_it_is_let_go_when_it_has_stood_still_for_too_long(attached, run, monkeypatch, name):
    attached.guest = make_guest(attached)
    held = watch(attached.guest)
    monkeypatch.setattr(listing_standing.time, "monotonic", lambda: 7.0 if len(held) < 2 else 9.5)
    result = run(name, "--hold", "2.5")
    assert result.exit_code == 0
    assert held[:3] == [True, True, False]
    assert result.stderr == (
        f"sevkvm: warning: from gva 0x{BASE:x} on the tables were read while the guest ran: "
        "it had stood still for 2.5 s (--hold)\n"
    )
    assert len(result.stdout.splitlines()) == {"tlb": len(PAGES), "mem": 2}[name]


def test_it_does_not_wait_for_whoever_reads_the_output(attached, run, monkeypatch):
    attached.guest = make_guest(attached)
    holder = attached.guest._parts.holder
    released = threading.Event()
    release = holder.release
    holder.release = lambda: (release(), released.set())
    written = []

    def write(data: bytes) -> None:
        # nothing is taken before the guest runs on
        assert released.wait(PATIENCE)
        written.append(data)

    monkeypatch.setattr(listing_outlet, "stdout_write", lambda: write)
    monkeypatch.setattr(listing_outlet, "Outlet", functools.partial(listing_outlet.Outlet, capacity=100))
    result = run("tlb", "--csv")
    assert result.exit_code == 0
    assert "the guest ran: nobody took the output fast enough" in result.stderr
    assert b"".join(written).count(b"\n") == len(PAGES) + 1


@both
def test_a_vmm_that_ends_meanwhile(attached, run, name):
    attached.guest = make_guest(attached)
    held = watch(attached.guest)
    read = attached.guest.memory.read_tables

    def read_tables(*args, **settings):
        if len(held) == 3:
            raise errors.TargetGone("the process has ended", pid=1)
        return read(*args, **settings)

    attached.guest.memory.read_tables = read_tables
    result = run(name)
    assert result.exit_code == 1
    assert result.stderr.startswith("sevkvm: error: the process has ended")


def test_each_table_costs_one_command_and_no_page_cache(attached, run):
    result = run("mem", "--json", "--stats")
    stats = json.loads(result.stderr)["stats"]
    assert stats["firmware_commands"] == stats["table_commands"] == 6
    assert stats["cache_hits"] == 0
    assert stats["held_ns"] > 0


def test_shared_pages_can_be_found(attached, run):
    found = [line for line in run("tlb", "--columns").stdout.splitlines() if " shared " in line]
    assert [line.split()[0] for line in found] == [f"0x{BASE + SHARED_GPA:016x}"]
