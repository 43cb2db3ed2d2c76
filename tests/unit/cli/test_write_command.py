"""``sevkvm write``: what it takes, shows, refuses and leaves behind; the pretend host is in this process."""

from __future__ import annotations

import json
import signal

import pytest

from sevkvm import errors
from sevkvm.abi.policybits import POLICY_NODBG
from sevkvm.cli.signals import unwinding_signals
from sevkvm.memory.guest import GuestMemory
from tests.unit.cli.conftest import (
    BASE,
    HIGH_GPA,
    PAGE,
    SECRET_GPA,
    SHARED,
    SHARED_GPA,
    TABLES_GPA,
    make_guest,
)
from tests.unit.cli.conftest import SECRET as SECRET_TEXT

SECRET = SECRET_TEXT.ljust(PAGE, b".")
SECRET_GVA, SHARED_GVA = BASE + SECRET_GPA, BASE + SHARED_GPA


@pytest.fixture
def guest(attached):
    attached.guest = make_guest(attached)
    return attached.guest


def ram(guest):
    """All memory, read the right way."""
    return b"".join(
        guest.memory.read(gpa, PAGE, private=gpa != SHARED_GPA)
        for slot in guest.slots
        for gpa in range(slot.gpa, slot.end, PAGE)
    )


@pytest.mark.parametrize(
    ("words", "data"),
    [
        (("--bytes", "de ad be ef"), b"\xde\xad\xbe\xef"),
        (("--bytes", "dead", "BEEF"), b"\xde\xad\xbe\xef"),
        (("--word", "0x1234", "7"), b"\x34\x12\x07\x00"),
        (("--long", "0xdeadbeef"), b"\xef\xbe\xad\xde"),
        (("--quad", "0x1", "18446744073709551615"), b"\1" + bytes(7) + b"\xff" * 8),
        (("--string", "grüße"), "grüße".encode()),
    ],
)
def test_values_as_they_are_typed(guest, run, words, data):
    done = run("write", hex(SECRET_GVA + 5), *words)
    assert done.exit_code == 0, done.stderr
    expected = SECRET[:5] + data + SECRET[5 + len(data) :]
    assert guest.memory.read(SECRET_GPA, PAGE) == expected[:PAGE]
    assert f"{len(data)} bytes written and read back" in done.stderr


def test_a_file(guest, run, tmp_path):
    page = tmp_path / "page"
    page.write_bytes(bytes(range(256)) * 20)
    done = run("write", "--from", str(page), hex(SECRET_GVA - 1000), "--json")
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    # 0x2000, 0x3000, and the shared page behind them
    assert [piece["private"] for piece in told["pieces"]] == [True, True, False]
    assert [piece["size"] for piece in told["pieces"]] == [1000, PAGE, 5120 - 1000 - PAGE]
    assert guest.memory.read(SECRET_GPA, PAGE) == page.read_bytes()[1000:][:PAGE]
    assert guest.memory.read(SHARED_GPA, 24, private=False) == page.read_bytes()[1000 + PAGE :]


def test_the_old_bytes_undo_it(guest, run):
    before = ram(guest)
    told = json.loads(run("write", hex(SHARED_GVA - 20), "--string", "x" * 40, "--json").stdout)
    assert ram(guest) != before
    undo = run("write", told["address"], "--bytes", told["old"], "--expect", told["new"])
    assert undo.exit_code == 0, undo.stderr
    assert ram(guest) == before


def test_what_people_see(guest, run):
    done = run("write", hex(SHARED_GVA - 2), "--bytes", "01020304")
    assert done.stdout.splitlines() == [
        f"gva 0x{SHARED_GVA - 2:x}, gpa 0x{SHARED_GPA - 2:x}, private, 2 bytes",
        f"  old  {SECRET[PAGE - 2 : PAGE].hex(' ')}",
        "  new  01 02",
        f"gva 0x{SHARED_GVA:x}, gpa 0x{SHARED_GPA:x}, shared, 2 bytes",
        f"  old  {SHARED[:2].hex(' ')}",
        "  new  03 04",
    ]


def test_a_dry_run_shows_and_writes_nothing(guest, run):
    before = ram(guest)
    done = run("write", "--dry-run", hex(SECRET_GVA), "--bytes", "01 02", "--json")
    assert done.exit_code == 0
    told = json.loads(done.stdout)
    assert (told["dry_run"], told["written"]) == (True, 0)
    assert (told["old"], told["new"]) == (SECRET[:2].hex(), "0102")
    assert "nothing was written" in done.stderr
    assert ram(guest) == before
    assert guest.memory.counts()["write_commands"] == 0


def test_expected_bytes_that_are_not_there(guest, run):
    before = ram(guest)
    wrong = SECRET[:3].hex() + "00"
    done = run("write", hex(SECRET_GVA), "--bytes", "01 02 03 04", "--expect", wrong)
    assert done.exit_code == 1
    assert f"gva 0x{SECRET_GVA + 3:x} is 0x{SECRET[3]:02x}, not 0x00" in done.stderr
    assert SECRET[:4].hex(" ") in done.stderr
    assert done.stdout == ""
    assert ram(guest) == before
    assert run("write", hex(SECRET_GVA), "--bytes", "01020304", "--expect", SECRET[:4].hex()).exit_code == 0


@pytest.mark.parametrize("gpa", [SECRET_GPA, SHARED_GPA, HIGH_GPA])
def test_the_page_tables_tell_how_a_physical_page_is_written(guest, run, gpa):
    done = run("write", "--gpa", hex(gpa), "--string", "physically", "--json")
    assert done.exit_code == 0, done.stderr
    private = gpa != SHARED_GPA
    assert json.loads(done.stdout)["pieces"] == [
        {"gva": None, "gpa": hex(gpa), "size": 10, "private": private, "page_table": False}
    ]
    assert guest.memory.read(gpa, 10, private=private) == b"physically"
    assert done.stderr == "sevkvm: 10 bytes written and read back\n"


def test_a_physical_write_over_both_kinds(guest, run):
    done = run("write", "--gpa", hex(SHARED_GPA - 3), "--bytes", "00" * (PAGE + 6))
    assert done.exit_code == 0, done.stderr
    assert guest.memory.read(SHARED_GPA - 3, 3) == bytes(3)
    assert guest.memory.read(SHARED_GPA, PAGE, private=False) == bytes(PAGE)
    assert guest.memory.read(SHARED_GPA + PAGE, 3) == bytes(3)


def test_what_no_page_table_tells_must_be_said(attached, run):
    attached.guest = make_guest(attached, no_registers="they are encrypted")
    before = ram(attached.guest)
    ask = run("write", "--gpa", hex(SECRET_GPA), "--no-scan", "--bytes", "00")
    assert ask.exit_code == 2
    assert "--private or --shared" in ask.stderr
    assert ram(attached.guest) == before
    said = run("write", "--gpa", hex(SECRET_GPA), "--no-scan", "--private", "--bytes", "00")
    assert said.exit_code == 0, said.stderr
    assert attached.guest.memory.read(SECRET_GPA, 1) == b"\0"


def test_who_says_otherwise_than_the_page_tables_is_warned_and_obeyed(guest, run):
    done = run("write", "--gpa", hex(SECRET_GPA), "--shared", "--bytes", "00")
    assert done.exit_code == 0
    assert f"map gpa 0x{SECRET_GPA:x} as private, not shared" in done.stderr


@pytest.mark.parametrize("how", [("--gpa",), ("--gva",), ("--gva", "--no-scan")])
def test_a_page_table_is_warned_of(guest, run, how):
    address = TABLES_GPA if "--gpa" in how else BASE + TABLES_GPA
    # an entry that is not used; the top table is on the way of every walk
    done = run("write", *how, hex(address + 8), "--quad", "0", "--json")
    assert done.exit_code == 0
    assert f"gpa 0x{TABLES_GPA:x} holds a page table" in done.stderr
    assert json.loads(done.stdout)["pieces"][0]["page_table"] is True


def test_a_guest_without_encryption(attached, run):
    guest = attached.guest = make_guest(attached, policy=None)
    done = run("write", hex(SECRET_GVA), "--string", "plain")
    assert done.exit_code == 0, done.stderr
    assert "private" not in done.stdout
    assert guest.memory.read(SECRET_GPA, 5) == b"plain"
    assert run("write", "--gpa", hex(SECRET_GPA), "--string", "again").exit_code == 0
    assert guest.memory.read(SECRET_GPA, 5) == b"again"
    assert "page table" in run("write", hex(BASE + TABLES_GPA + 8), "--quad", "0").stderr


@pytest.mark.parametrize(
    ("args", "status", "text"),
    [
        (("--gpa", "0xfee00000", "--bytes", "00"), 1, "MMIO or a hole"),
        (("--gpa", hex(HIGH_GPA + 64 * 1024 - 1), "--bytes", "0000"), 1, "MMIO or a hole"),
        (("0x1000", "--bytes", "00"), 1, "not-present"),
        ((hex(BASE),), 2, "give one of"),
        ((hex(BASE), "--word", "--long", "1"), 2, "give one of"),
        ((hex(BASE), "--bytes"), 2, "nothing to write"),
        ((hex(BASE), "--bytes", "0"), 2, "not bytes"),
        ((hex(BASE), "--word", "65536"), 2, "16 bits"),
        ((hex(BASE), "--quad", "ff"), 2, "0xff?"),
        ((hex(BASE), "--string", "a", "b"), 2, "quote it"),
        ((hex(BASE), "--bytes", "00", "--expect", "0000"), 2, "--expect has 2 bytes"),
        ((hex(BASE), "--private", "--bytes", "00"), 2, "need --gpa"),
        ((hex((1 << 64) - 1), "--bytes", "0000"), 2, "above 2**64"),
        ((hex(BASE), "--from", "/nonexistent/bytes"), 1, "/nonexistent/bytes"),
        ((hex(BASE), "--from", "/nonexistent/bytes", "1"), 2, "exclude each other"),
        (("--file", "dump", hex(BASE), "--bytes", "00"), 2, "a dump is not written to"),
    ],
)
def test_what_is_refused(guest, run, args, status, text):
    before = ram(guest)
    done = run("write", *args)
    message = done.stderr or str(done.exception)
    assert text in message
    assert done.exit_code == status or getattr(done.exception, "exit_code", 1) == status
    assert ram(guest) == before


def test_a_policy_that_forbids_debugging(attached, run):
    attached.guest = make_guest(attached, policy=POLICY_NODBG)
    done = run("write", hex(SHARED_GVA), "--bytes", "00")
    assert isinstance(done.exception, errors.DebugForbidden) or done.exit_code == 5


def test_a_failure_tells_the_old_bytes_and_how_far_it_came(guest, run, monkeypatch):
    carry_out = GuestMemory.carry_out

    def stop_early(memory, plan):
        carry_out(memory, type(plan)(plan.pieces[:1]))
        raise errors.WriteFailed("gva", plan.pieces[1].gva, "made to fail", written=len(plan.pieces[0].new))

    monkeypatch.setattr(GuestMemory, "carry_out", stop_early)
    done = run("write", hex(SHARED_GVA - 3), "--bytes", "00" * 6, "--json")
    assert done.exit_code == 1
    told = json.loads(done.stdout)
    assert (told["written"], told["failed_at"]) == (3, hex(SHARED_GVA))
    assert told["old"] == (SECRET[PAGE - 3 : PAGE] + SHARED[:3]).hex()


def test_a_signal_waits_for_the_write_and_the_old_bytes(guest, run, monkeypatch):
    carry_out = GuestMemory.carry_out

    def interrupted(memory, plan):
        signal.raise_signal(signal.SIGTERM)
        carry_out(memory, plan)

    monkeypatch.setattr(GuestMemory, "carry_out", interrupted)
    with unwinding_signals():
        done = run("write", hex(SECRET_GVA), "--string", "late", "--json")
    assert done.exit_code != 0
    assert json.loads(done.stdout)["written"] == 4
    assert guest.memory.read(SECRET_GPA, 4) == b"late"
