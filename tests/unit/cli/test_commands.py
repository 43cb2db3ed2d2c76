"""What each command prints, as text and as JSON, and how it ends."""

import json
import types

import pytest
from elftools.elf.elffile import ELFFile

from sevkvm import errors
from sevkvm.abi import x86
from sevkvm.memory.policy import SevKind
from sevkvm.paging.mode import PagingMode
from tests.unit.cli.conftest import (
    BASE,
    HIGH_GPA,
    HIGH_NBYTES,
    LOW_NBYTES,
    PAGE,
    SECRET,
    SECRET_GPA,
    SHARED,
    SHARED_GPA,
    TABLES_GPA,
    make_guest,
)

GUEST_COMMANDS = [
    ("status",),
    ("regs",),
    ("translate", "0x1000"),
    ("x", "0x1000"),
    ("xp", "0x1000"),
    ("search", "no such text"),
    ("dump", "-o", "no-such-file"),
    ("tlb",),
    ("mem", "--summary"),
    ("audit",),
]


# ---- what all commands share


@pytest.mark.parametrize("args", GUEST_COMMANDS, ids=lambda args: args[0])
def test_the_guest_options_reach_attach(attached, run, args):
    options = "--pid 4242 --vm-fd 0x11 --qmp /run/q --libvirt dom --slot 0:4K:0x7000 --slot 1G:4K:0x9000"
    options += " --cbit-pos 47 --cr3 0x10000 --paging pae --vcpu 1 --search-limit 64M --timeout 2.5"
    options += " --via mirror"
    attached.error = errors.AttachError("stop here")
    result = run(*args, *options.split())
    assert result.exit_code == 3
    assert vars(attached.options) == {
        "pid": 4242,
        "vm_fd": 17,
        "qmp": "/run/q",
        "libvirt": "dom",
        "slots": ("0:4K:0x7000", "1G:4K:0x9000"),
        "cbit_pos": 47,
        "cr3": 0x10000,
        "vcpu": 1,
        "paging": PagingMode.PAE,
        "search_limit": 64 << 20,
        "mmio": False,
        "timeout": 2.5,
        "via": "mirror",
    }


@pytest.mark.parametrize("args", GUEST_COMMANDS, ids=lambda args: args[0])
@pytest.mark.parametrize(
    "bad",
    [
        "--pid 0",
        "--pid abc",
        "--pid -4",
        "--vm-fd x",
        "--cbit-pos 52",
        "--cbit-pos 31",
        "--cr3 zz",
        "--paging 3level",
        "--vcpu -1",
        "--search-limit much",
        "--timeout 0",
        "--timeout nan",
        "--via ptrace",
        "--bogus",
    ],
)
def test_bad_options_are_refused_before_anything_is_attached(attached, run, args, bad):
    result = run(*args, *bad.split())
    assert result.exit_code == 2
    assert result.stderr.startswith("sevkvm: error: ")
    assert f"hint: see `sevkvm {args[0]} --help`" in result.stderr
    assert attached.options is None


@pytest.mark.parametrize("args", GUEST_COMMANDS, ids=lambda args: args[0])
def test_only_status_looks_at_a_guest_that_forbids_debugging(attached, run, args, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    attached.guest = make_guest(attached, policy=1)
    result = run(*args)
    if args[0] == "status":
        assert result.exit_code == 0, result.stderr
    else:
        assert result.exit_code == 5
        assert "forbids debugging (NODBG)" in result.stderr
        assert result.stdout == ""
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("args", GUEST_COMMANDS[:5], ids=lambda args: args[0])
def test_the_guest_is_released_before_anything_is_printed(attached, run, args, monkeypatch):
    when_printed = []
    monkeypatch.setattr("click.echo", lambda *a, **k: when_printed.append(attached.left))
    run(*args)
    assert when_printed
    assert all(when_printed)
    assert attached.held_when_left == 0


def test_warnings_go_to_stderr(attached, run):
    attached.warning = "guessed from the mappings"
    result = run("status")
    assert result.stderr == "sevkvm: warning: guessed from the mappings\n"
    assert result.exit_code == 0


def test_stats_are_one_line_on_stderr(attached, run):
    result = run("translate", "--stats", hex(BASE))
    (line,) = result.stderr.splitlines()
    assert line.startswith("sevkvm: stats: ")
    counts = dict(pair.split("=") for pair in line.removeprefix("sevkvm: stats: ").split())
    assert counts["firmware_commands"] == counts["table_commands"] == "4"
    assert counts["data_commands"] == "0"


def test_stats_are_json_with_json(attached, run):
    result = run("translate", "--stats", "--json", hex(BASE), hex(BASE + PAGE))
    assert json.loads(result.stderr)["stats"]["firmware_commands"] == 4  # the second address costs nothing
    assert len(json.loads(result.stdout)) == 2


def test_stats_are_told_when_a_command_fails_too(attached, run):
    attached.guest = make_guest(attached, no_registers="this is a SEV-ES guest: its registers are encrypted")
    result = run("regs", "--stats")
    assert result.exit_code == 1
    stats, error, hint = result.stderr.splitlines()
    assert "attach_ns=123" in stats
    assert error == "sevkvm: error: this is a SEV-ES guest: its registers are encrypted"
    assert "--cr3" in hint


# ---- list


def summary(**changes):
    facts = {"pid": 7, "vm_fd": 9, "name": "g", "vcpus": 2, "sev": "none"}
    facts |= {"policy": None, "debug_allowed": None, "reason": None}
    return types.SimpleNamespace(**facts | changes)


GUESTS = [
    summary(),
    summary(pid=8, name="secret", sev="sev", policy=0, debug_allowed=True),
    summary(pid=9, name="", sev="sev-es", policy=5, debug_allowed=False),
    summary(pid=10, sev="unknown", reason="ptrace: Operation not permitted"),
]


def test_list_as_a_table(attached, run):
    attached.guests = GUESTS
    lines = run("list").stdout.splitlines()
    assert [line.split() for line in lines[:4]] == [
        ["PID", "VM-FD", "NAME", "VCPUS", "SEV", "POLICY", "DEBUG", "NOTE"],
        ["7", "9", "g", "2", "none", "-", "-"],
        ["8", "9", "secret", "2", "sev", "0x0", "yes"],
        ["9", "9", "-", "2", "sev-es", "0x5", "no"],
    ]
    assert lines[4].endswith("?      ptrace: Operation not permitted")
    assert len({line.index(cell) for line, cell in zip(lines[:3], ("VM-FD", "9", "9"), strict=True)}) == 1


def test_list_as_json(attached, run):
    attached.guests = GUESTS
    plain, sev, es, unknown = json.loads(run("list", "--json").stdout)
    assert plain == {
        "pid": 7,
        "vm_fd": 9,
        "name": "g",
        "vcpus": 2,
        "sev": "none",
        "policy": None,
        "debug_allowed": None,
        "reason": None,
    }
    assert (sev["policy"], sev["debug_allowed"]) == ("0x0", True)
    assert (es["policy"], es["debug_allowed"]) == ("0x5", False)
    assert (unknown["sev"], unknown["reason"]) == ("unknown", "ptrace: Operation not permitted")


def test_list_without_guests(attached, run):
    result = run("list")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "no KVM guest found" in result.stderr
    assert json.loads(run("list", "--json").stdout) == []


def test_a_hostile_name_does_not_reach_the_terminal(attached, run):
    attached.guests = [summary(name="\x1b[2Jevil\n\x9b")]
    assert "\\x1b[2Jevil\\x0a\\x9b" in run("list").stdout


# ---- status


def test_status_of_an_encrypted_guest(attached, run):
    text = run("status").stdout
    for expected in (
        "SEV: memory is encrypted",
        "0x0 (no restriction)",
        "debugging:   allowed",
        "running, firmware handle 1",
        "bit 51, told by the VMM's monitor",
        "vCPUs:       2 (index 0, 1)",
        "320 KiB in 2 slots",
        "0x100000000  0x100010000  64 KiB",
    ):
        assert expected in text


def test_status_explains_a_policy(attached, run):
    attached.guest = make_guest(attached, policy=0x7)
    text = run("status").stdout
    assert "0x7 (NODBG, NOKS, ES)" in text
    for sentence in ("debugging is forbidden", "sharing the key", "registers are encrypted"):
        assert sentence in text
    assert "debugging:   forbidden" in text
    assert attached.need_debug is False


def test_status_as_json(attached, run):
    status = json.loads(run("status", "--json").stdout)
    slots = status.pop("slots")
    assert status == {
        "pid": 4242,
        "vm_fd": status["vm_fd"],
        "name": "guest-1",
        "vcpus": 2,
        "vcpu_indexes": [0, 1],
        "sev": "sev",
        "policy": "0x0",
        "policy_flags": [],
        "policy_api": [0, 0],
        "debug_allowed": True,
        "state": "running",
        "handle": 1,
        "cbit_pos": 51,
        "cbit_source": "qmp",
        "via": "deputy",
        "via_remark": "guest RAM is anonymous",
        "memory_size": LOW_NBYTES + HIGH_NBYTES,
    }
    assert [(slot["gpa"], slot["size"], slot["name"], slot["readonly"]) for slot in slots] == [
        ("0x0", LOW_NBYTES, "low", False),
        (hex(HIGH_GPA), HIGH_NBYTES, "high", False),
    ]


def test_status_of_a_plain_guest(attached, run):
    attached.guest = make_guest(attached, policy=None)
    status = json.loads(run("status", "--json").stdout)
    assert status["sev"] == "none"
    assert [status[key] for key in ("policy", "debug_allowed", "state", "cbit_pos")] == [None] * 4
    text = run("status").stdout
    assert "not encrypted" in text
    assert "debugging" not in text


def test_status_of_an_snp_guest(attached, run):
    attached.guest = make_guest(attached, kind=SevKind.SEV_SNP, cbit_pos=None)
    object.__setattr__(attached.guest.sev, "policy", None)
    result = run("status", "--json")
    status = json.loads(result.stdout)
    assert (result.exit_code, status["sev"], status["debug_allowed"]) == (0, "sev-snp", False)
    assert run("regs").exit_code == 5


# ---- regs


def test_regs_as_qemu_shows_them(attached, run):
    text = run("regs").stdout
    first, second = text.split("\n\n")
    assert first.startswith("CPU#0\nRAX=5e70000000000000 RBX=5e70000000000001 ")
    assert second.startswith("CPU#1\nRAX=5e70000100000000 ")
    assert f"RIP={BASE + 0x1000:016x} RFL=00000002 CPL=0" in first
    assert "CS =0008 0000000000000000 ffffffff 00a09b00 DPL=0" in first
    assert "CR3=0008000000010000" in first
    assert f"paging: 4-level, tables at gpa 0x{TABLES_GPA:x}, C-bit 51 set" in first


def test_regs_of_one_vcpu_as_json(attached, run):
    (vcpu,) = json.loads(run("regs", "--vcpu", "1", "--json").stdout)
    assert vcpu["index"] == 1
    assert vcpu["rax"] == "0x5e70000100000000"
    assert vcpu["rip"] == hex(BASE + 0x1000)
    assert vcpu["cr3"] == "0x8000000010000"
    assert vcpu["cs"] == {
        "selector": "0x8",
        "base": "0x0",
        "limit": "0xffffffff",
        "flags": "0xa09b00",
        "unusable": False,
    }
    assert vcpu["paging"] == {"mode": "4-level", "pse": False, "root_gpa": hex(TABLES_GPA)}
    assert {"gdt", "idt", "tr", "ldt", "efer", "cr0", "cr2", "cr4", "cr8", "rflags"} <= vcpu.keys()


def test_regs_of_no_such_vcpu(attached, run):
    result = run("regs", "--vcpu", "2")
    assert result.exit_code == 2
    assert "hint: this guest's vCPUs: 0, 1" in result.stderr


def test_regs_does_not_guess_the_root_without_the_c_bit(attached, run):
    attached.guest = make_guest(attached, cbit_pos=None)
    (vcpu, _) = json.loads(run("regs", "--json").stdout)
    assert vcpu["paging"] == {"mode": "4-level", "pse": False, "root_gpa": None}
    assert "unknown without the C-bit" in run("regs").stdout


@pytest.mark.parametrize(
    ("cr4", "words", "root", "pse"),
    [
        (0, "32-bit, tables at gpa 0x123000", "0x123000", False),
        (x86.CR4_PSE, "32-bit, 4 MiB pages, tables at gpa 0x123000", "0x123000", True),
        (x86.CR4_PAE, "pae, tables at gpa 0x123fe0", "0x123fe0", False),
    ],
)
def test_regs_without_long_mode(attached, run, monkeypatch, cr4, words, root, pse):
    attached.guest = make_guest(attached)
    state = attached.guest.registers()[0]
    state = state._replace(sregs=state.sregs._replace(cr3=0x123FFF, cr4=cr4, efer=0))
    monkeypatch.setattr(attached.guest, "registers", lambda: [state])
    assert run("regs").stdout.splitlines()[-1] == f"paging: {words}"
    (vcpu,) = json.loads(run("regs", "--json").stdout)
    assert vcpu["paging"] == {"mode": words.split(",")[0], "pse": pse, "root_gpa": root}


# ---- x and xp


def test_x_is_plaintext_of_private_and_shared_pages(attached, run):
    lines = run("x", "/12cb", hex(BASE + SECRET_GPA)).stdout.splitlines()
    assert lines[0] == "ffff888000003000: 't' 'h' 'e' ' ' 'q' 'u' 'i' 'c'"
    assert lines[1] == "ffff888000003008: 'k' ' ' 'b' 'r'"
    result = run("x", "/3cb", hex(BASE + SHARED_GPA))
    assert result.stdout == "ffff888000004000: 'f' 'o' 'r'\n"


def test_x_without_a_format_is_one_word(attached, run):
    word = int.from_bytes(SECRET[:4], "little")
    assert run("x", hex(BASE + SECRET_GPA)).stdout == f"ffff888000003000: 0x{word:08x}\n"
    assert run("xp", hex(SECRET_GPA)).stdout == f"0000000000003000: 0x{word:08x}\n"


def test_x_ends_with_6_where_memory_ends(attached, run):
    result = run("x", "/8xg", hex(BASE + LOW_NBYTES - 16))
    assert result.exit_code == 6
    lines = result.stdout.splitlines()
    assert len(lines) == 2
    assert lines[1] == f"{BASE + LOW_NBYTES:016x}: Cannot access memory"


def test_x_as_json(attached, run):
    answer = json.loads(run("x", "--json", "/16xb", hex(BASE + SECRET_GPA)).stdout)
    assert answer == {
        "address_space": "gva",
        "address": hex(BASE + SECRET_GPA),
        "size": 16,
        "bytes": SECRET[:16].hex(),
        "complete": True,
        "device_reads": 0,
        "failed_at": None,
    }
    result = run("xp", "--json", "/4xg", hex(LOW_NBYTES - 8))
    answer = json.loads(result.stdout)
    assert result.exit_code == 6
    assert answer["bytes"] == attached.ram[0][-8:].hex()
    assert (answer["address_space"], answer["size"], answer["complete"]) == ("gpa", 8, False)
    assert answer["failed_at"] == hex(LOW_NBYTES)


def test_xp_shows_ciphertext_when_asked(attached, run):
    plain = json.loads(run("xp", "--json", "/32xb", hex(SECRET_GPA)).stdout)["bytes"]
    stored = json.loads(run("xp", "--shared", "--json", "/32xb", hex(SECRET_GPA)).stdout)["bytes"]
    assert plain == SECRET[:32].hex()
    assert stored[:32] != plain[:32]
    assert stored[32:] != plain[32:]
    shared = json.loads(run("xp", "--shared", "--json", "/32xb", hex(SHARED_GPA)).stdout)["bytes"]
    assert shared == SHARED[:32].hex()


class Devices:
    """Each access tells how many there were; ``broken_at`` breaks the conversation off."""

    def __init__(self, broken_at: int | None = None) -> None:
        self.count, self.broken_at, self.closed = 0, broken_at, False

    def read(self, gpa: int, nbytes: int) -> bytes:
        if gpa == self.broken_at:
            raise errors.ProtocolError("the monitor broke off")
        self.count += 1
        return self.count.to_bytes(nbytes, "little")

    def paused(self) -> bool:
        return False

    def close(self) -> None:
        self.closed = True


MMIO = 0xFED00000


def with_devices(attached, devices):
    attached.guest = make_guest(attached)
    attached.guest._parts = attached.guest._parts._replace(devices=devices)


def test_devices_are_read_when_that_was_asked_for(attached, run):
    with_devices(attached, Devices())
    assert (
        run("xp", "--mmio", "/5xh", hex(MMIO)).stdout == f"{MMIO:016x}: 0x0001 0x0002 0x0003 0x0004 0x0005\n"
    )
    assert attached.options.mmio
    answer = json.loads(run("xp", "--mmio", "--json", "/2xw", hex(MMIO)).stdout)
    assert answer == {
        "address_space": "gpa",
        "address": hex(MMIO),
        "size": 8,
        "bytes": "0600000007000000",
        "complete": True,
        "device_reads": 2,
        "failed_at": None,
    }


def test_what_a_device_told_is_shown_whatever_comes_after_it(attached, run):
    with_devices(attached, Devices(broken_at=MMIO + 16))
    result = run("xp", "--mmio", "/6xw", hex(MMIO))
    assert result.stdout == f"{MMIO:016x}: 0x00000001 0x00000002 0x00000003 0x00000004\n"
    assert result.exit_code == 1
    result = run("xp", "--mmio", "--json", "/6xw", hex(MMIO))
    assert result.exit_code == 1
    answer = json.loads(result.stdout)
    assert (answer["bytes"], answer["complete"]) == ("05000000060000000700000008000000", False)
    assert answer["failed_at"] == hex(MMIO + 16)


def test_ciphertext_needs_no_debug_policy(attached, run):
    attached.guest = make_guest(attached, policy=1)
    assert run("xp", "--shared", hex(SECRET_GPA)).exit_code == 0


@pytest.mark.parametrize(
    "words",
    [("/4xq", "0x0"), ("/4i", "0x0"), ("4xg", "0x0"), ("/4xg",), ("/x", "1", "2"), ("0x0", "/4x"), ("rip",)],
)
@pytest.mark.parametrize("command", ["x", "xp"])
def test_what_is_no_question_is_refused(attached, run, command, words):
    result = run(command, *words)
    assert result.exit_code == 2, result.output
    assert attached.options is None


def test_a_huge_question_is_not_read_into_memory(attached, run):
    result = run("x", "--json", "/99999999999xg", hex(BASE))
    assert result.exit_code == 2
    result = run("xp", "/999999999999xg", hex(LOW_NBYTES - 32))
    assert result.exit_code == 6
    assert len(result.stdout.splitlines()) == 3


# ---- dump


def test_dump_raw_is_the_plaintext(attached, run, tmp_path):
    out = tmp_path / "low.raw"
    result = run("dump", "-o", str(out), "--gpa", f"0:{LOW_NBYTES}", "--json")
    assert result.exit_code == 0, result.stderr
    assert out.read_bytes() == attached.ram[0]
    assert out.stat().st_mode & 0o777 == 0o600
    answer = json.loads(result.stdout)
    assert (answer["format"], answer["address_space"], answer["complete"]) == ("raw", "gpa", True)
    assert answer["file_size"] == answer["copied"] == LOW_NBYTES
    assert answer["ranges"] == [{"address": "0x0", "gpa": "0x0", "size": LOW_NBYTES, "offset": 0}]
    assert answer["holes"] == []
    assert answer["pages"]["shared"] == PAGE
    assert sum(answer["pages"].values()) == LOW_NBYTES + HIGH_NBYTES


def test_dump_of_all_memory(attached, run, tmp_path):
    out = tmp_path / "all.elf"
    result = run("dump", "-o", str(out), "--format", "elf", "--json", "--stats")
    assert result.exit_code == 0, result.stderr
    answer = json.loads(result.stdout)
    data = out.read_bytes()
    assert data[:4] == b"\x7fELF"
    for found in answer["ranges"]:
        ram = attached.ram[int(found["gpa"], 16)]
        assert data[found["offset"] : found["offset"] + found["size"]] == ram
    assert answer["vcpus"] == 2
    assert [(hole["address"], hole["reason"]) for hole in answer["holes"]] == [(hex(LOW_NBYTES), "not-ram")]
    stats = json.loads(result.stderr.splitlines()[-1])["stats"]
    assert (
        stats["firmware_commands"] == (LOW_NBYTES + HIGH_NBYTES) // PAGE - 1
    )  # all but the shared page, once
    assert "320 KiB of guest memory in 2 ranges" in result.stderr


def test_dump_with_virtual_addresses_shows_the_same_bytes_again(attached, run, tmp_path):
    out = tmp_path / "core"
    assert run("dump", "-o", str(out), "--format", "elf", "--virtual").exit_code == 0
    with out.open("rb") as file:
        loads = [
            (each["p_vaddr"], each["p_paddr"], each.data()) for each in ELFFile(file).iter_segments("PT_LOAD")
        ]
    physical = sorted(attached.ram.items())
    assert loads == [
        *((BASE + gpa, gpa, data) for gpa, data in physical),
        *((gpa, gpa, data) for gpa, data in physical),
    ]
    assert out.stat().st_size < LOW_NBYTES + HIGH_NBYTES + (256 << 10)


def test_dump_without_a_scan_takes_all_as_private(attached, run, tmp_path):
    out = tmp_path / "low.raw"
    result = run("dump", "-o", str(out), "--gpa", f"0:{LOW_NBYTES}", "--no-scan", "--json")
    assert result.exit_code == 0
    data, ram = out.read_bytes(), attached.ram[0]
    assert data[SHARED_GPA : SHARED_GPA + PAGE] != SHARED  # decrypted though it was not encrypted
    assert data[:SHARED_GPA] + data[SHARED_GPA + PAGE :] == ram[:SHARED_GPA] + ram[SHARED_GPA + PAGE :]
    assert json.loads(result.stdout)["pages"] == {"unmapped": LOW_NBYTES + HIGH_NBYTES}


def test_dump_without_registers_says_what_it_assumes(attached, run, tmp_path):
    attached.guest = make_guest(attached, policy=4, no_registers="its registers are encrypted")
    result = run("dump", "-o", str(tmp_path / "out"), "--gpa", "0:8K")
    assert result.exit_code == 0
    said = result.stderr
    assert "warning: its registers are encrypted, and no Linux kernel was found in its memory: " in said
    assert "without page tables all memory is taken as private" in said


def test_dump_of_virtual_memory(attached, run, tmp_path):
    out = tmp_path / "virtual.raw"
    result = run("dump", "-o", str(out), "--gva", f"0x{BASE + SECRET_GPA:x}:+8K", "--json")
    assert result.exit_code == 0, result.stderr
    assert out.read_bytes() == attached.ram[0][SECRET_GPA : SECRET_GPA + 2 * PAGE]
    answer = json.loads(result.stdout)
    assert (answer["address_space"], answer["pages"]) == ("gva", None)
    assert answer["ranges"][0]["address"] == hex(BASE + SECRET_GPA)


def test_dump_with_holes_ends_with_6(attached, run, tmp_path):
    out = tmp_path / "virtual.raw"
    start = BASE + LOW_NBYTES - PAGE
    result = run("dump", "-o", str(out), "--gva", f"{start:#x}:+8K", "--json")
    assert result.exit_code == 6
    assert f"warning: gva 0x{start + PAGE:x}:+0x1000 not mapped" in result.stderr
    assert "4 KiB of guest memory in 1 ranges, 4 KiB missing" in result.stderr
    assert out.stat().st_size == 2 * PAGE
    (hole,) = json.loads(result.stdout)["holes"]
    assert hole == {"address": hex(start + PAGE), "size": PAGE, "reason": "not-mapped", "zero_filled": False}


def test_dump_refuses_an_existing_file_before_it_attaches(attached, run, tmp_path):
    out = tmp_path / "there"
    out.write_text("precious")
    result = run("dump", "-o", str(out))
    assert result.exit_code == 2
    assert attached.options is None
    assert out.read_text() == "precious"
    assert run("dump", "-o", str(out), "--force", "--gpa", "0:4K").exit_code == 0
    assert out.read_bytes() == attached.ram[0][:PAGE]


@pytest.mark.parametrize(
    "args",
    [
        ("--gpa", "0:1M", "--gva", "0:1M"),
        ("--gpa", "1M"),
        ("--gpa", "2M:1M"),
        ("--format", "zip"),
        ("--virtual",),
        ("--virtual", "--format", "elf", "--gva", "0:1M"),
        ("--unmapped", "zero"),
        ("--unmapped", "skip", "--no-scan"),
        ("--unmapped", "skip", "--gva", "0:1M"),
        ("--unmapped", "shared", "--gva", "0:1M"),
        ("-o", "/no/dir/x"),
    ],
)
def test_dump_refuses_bad_arguments(attached, run, tmp_path, args):
    result = run("dump", "-o", str(tmp_path / "x"), *args)
    assert result.exit_code == 2
    assert attached.options is None
    assert list(tmp_path.iterdir()) == []


def test_dump_needs_to_know_where_to(attached, run):
    result = run("dump")
    assert result.exit_code == 2
    assert "-o" in result.stderr


def test_dump_holds_the_guest_unless_live(attached, run, tmp_path):
    for args, held in (((), True), (("--live",), False)):
        attached.guest = make_guest(attached)
        depths = []
        read = attached.guest.memory.readinto
        holder = attached.guest._parts.holder
        attached.guest.memory.readinto = lambda *a, read=read, holder=holder, depths=depths: (
            depths.append(holder.depth > 0),
            read(*a),
        )[1]
        out = tmp_path / f"held-{held}"
        assert run("dump", "-o", str(out), *args).exit_code == 0
        assert set(depths) == {held}
        assert holder.depth == 0


def test_without_the_c_bit_only_what_needs_page_tables_is_refused(attached, run, tmp_path):
    out = tmp_path / "out"
    for args, status in (
        (("translate", hex(BASE)), 5),
        (("x", hex(BASE)), 5),
        (("dump", "-o", str(out)), 5),
        (("xp", hex(SECRET_GPA)), 0),
        (("dump", "-o", str(out), "--no-scan"), 0),
    ):
        attached.guest = make_guest(attached, cbit_pos=None)
        result = run(*args)
        assert result.exit_code == status, args
        assert ("--cbit-pos" in result.stderr) == (status == 5)
        assert out.exists() == (args[-1] == "--no-scan")
