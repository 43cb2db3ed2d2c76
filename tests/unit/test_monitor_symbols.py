"""Names in the monitor, of a kernel that is made of bytes here, through the pretend firmware, and what they cost."""

from __future__ import annotations

import struct

import pytest

from sevkvm import errors
from sevkvm.abi.policybits import POLICY_ES
from sevkvm.guest import Guest
from sevkvm.monitor.completion import candidates
from sevkvm.monitor.labels import referred
from sevkvm.monitor.monitor import Monitor
from sevkvm.monitor.outside import NoOutside
from sevkvm.monitor.runcontrol import RunControl
from sevkvm.shim.port import launch_guest
from tests.support.fakekernel import FakeRam
from tests.support.kallsymsbuild import build
from tests.unit.test_guest import CBIT, Holder, commands, decrypts, open_fake

MIB = 1 << 20
DATA_GPA, DATA = 8 * MIB, 0xFFFF_FFFF_9E20_0000
UTS, TABLE, CODE = DATA + 0x21_0000, DATA + 0x10_0000, DATA + 0x18_0000
ES = "this is a SEV-ES guest: its registers are encrypted"
SYMBOLS = [
    ("Apercpu", 0x1000),
    ("T_stext", DATA),
    ("tdo_idle", CODE),
    ("tcalled.isra.0", CODE + 0x40),
    ("tcopy", CODE + 0x50),
    ("tcopy", CODE + 0x60),
    ("Dinit_uts_ns", UTS),
    ("Djiffies", UTS + 0x100),
    ("B_end", DATA + 4 * MIB),
]
# call called; mov jiffies(%rip), %rax; jmp to do_idle; mov %gs:0(%rip), %rax
INSTRUCTIONS = (
    b"\xe8"
    + struct.pack("<i", 0x40 - 5)
    + b"\x48\x8b\x05"
    + struct.pack("<i", UTS + 0x104 - CODE - 12)
    + b"\xeb"
    + struct.pack("<b", -14)
    + b"\x65\x48\x8b\x05"
    + struct.pack("<i", 0)
)


def make(*, since_615: bool = False, known: bool = True) -> tuple[Guest, Holder]:
    ram = FakeRam(16 * MIB, CBIT)
    table, where = build(SYMBOLS, TABLE, DATA, since_615=since_615)
    lines = [f"SYMBOL({name})={gva:x}" for name, gva in where.items() if known]
    ram.add_kernel(
        data_gpa=DATA_GPA, note_gpa=0x12_3000, data_gva=DATA, lines=[*lines, f"SYMBOL(_stext)={DATA:x}"]
    )
    ram.put(DATA_GPA + TABLE - DATA, table)
    ram.put(DATA_GPA + CODE - DATA, INSTRUCTIONS)
    fake = launch_guest({0: bytes(ram.ram)}, policy=POLICY_ES, shared=[], vcpus=1, es=True)
    guest, holder = open_fake(fake, no_registers=ES)
    holder.fake = fake  # type: ignore[attr-defined]
    return guest, holder


@pytest.fixture(scope="module")
def opened() -> tuple[Guest, Holder]:
    return make()


def monitor_over(guest: Guest, **options: object) -> Monitor:
    return Monitor(guest, NoOutside(), RunControl(guest, NoOutside()), **options)  # type: ignore[arg-type]


@pytest.fixture
def monitors(opened: tuple[Guest, Holder]) -> tuple[Monitor, Monitor]:
    """As QEMU, and with names."""
    return monitor_over(opened[0]), monitor_over(opened[0], symbolic=True)


def test_they_are_read_once_and_every_command_is_counted() -> None:
    guest, holder = make()
    told: list[str] = []
    monitor = monitor_over(guest, told=told.append)
    assert monitor.execute(f"sym {CODE + 0x17}") == f"{CODE:#x}"[:-2] + "17: do_idle+0x17\n"
    spent = commands(guest)
    assert spent == decrypts(holder.fake)  # type: ignore[attr-defined]
    assert told == [f"{len(SYMBOLS)} symbols of Linux 6.1.0-fake, read with {spent} firmware commands"]
    assert not holder.held
    for line in ("addr do_idle", "sym 0xffffffff9e200000"):
        monitor.execute(line)
        assert (commands(guest), len(told)) == (spent, 1), line


def test_names_without_a_note_of_them() -> None:
    guest, _ = make(known=False)
    monitor = monitor_over(guest)
    said = monitor.execute("addr do_idle")
    assert "before 6.0" in said
    assert "hint: " in said
    assert monitor.status == 1
    with pytest.raises(errors.BadGuestData):
        guest.symbols()


def test_a_guest_that_is_no_linux() -> None:
    fake = launch_guest({0: bytes(4 * MIB)}, policy=POLICY_ES, shared=[], vcpus=1, es=True)
    guest, _ = open_fake(fake, no_registers=ES)
    monitor = monitor_over(guest)
    assert "no Linux kernel was found" in monitor.execute("sym 0xffffffff81000000")
    assert monitor.status == 1


@pytest.mark.parametrize(
    ("line", "answer", "status"),
    [
        (f"sym {CODE}", f"0x{CODE:016x}: do_idle\n", 0),
        (f"sym {CODE:#x}+0x10*2+1", f"0x{CODE + 0x21:016x}: do_idle+0x21\n", 0),
        (f"sym {UTS + 0x1FF}", f"0x{UTS + 0x1FF:016x}: jiffies+0xff\n", 0),
        ("addr do_idle", f"0x{CODE:016x}: do_idle\n", 0),
        ("addr percpu", "0x0000000000001000: percpu\n", 0),
        ("addr copy", f"0x{CODE + 0x50:016x}: copy\n0x{CODE + 0x60:016x}: copy\n", 0),
        ("addr nobody", "Error: the kernel has no symbol 'nobody'\n", 1),
        ("sym 0x1000", "Error: 0x1000 is not in the kernel's image: it has no name\n", 1),
        (
            "sym 1 2",
            'sym: extraneous characters at the end of line\nTry "help sym" for more information\n',
            1,
        ),
        ("addr", 'addr: string expected\nTry "help addr" for more information\n', 1),
    ],
)
def test_answers(monitors: tuple[Monitor, Monitor], line: str, answer: str, status: int) -> None:
    for monitor in monitors:
        assert (monitor.execute(line), monitor.status) == (answer, status)


def test_without_the_option_a_name_is_what_it_is_to_qemu(monitors: tuple[Monitor, Monitor]) -> None:
    plain, symbolic = monitors
    assert "invalid char 'd' in expression" in plain.execute("print do_idle")
    assert symbolic.execute("print do_idle+0x17") == f"0x{CODE + 0x17:x}\n"
    assert symbolic.execute("print (called.isra.0-do_idle)*2") == "0x80\n"
    assert symbolic.execute("print nobody") == "the kernel has no symbol 'nobody'\n"
    assert symbolic.execute("print copy") == "'copy' is at 2 addresses: \"addr copy\" tells them\n"
    assert "unknown register" in symbolic.execute("print $do_idle")


def test_memory_with_names_is_memory_without_them(monitors: tuple[Monitor, Monitor]) -> None:
    plain, symbolic = monitors
    bare = plain.execute(f"x /4xg {CODE + 0x38:#x}")
    named = symbolic.execute("x /4xg do_idle+0x38")
    assert [line.split()[1] for line in named.splitlines()] == ["<do_idle+0x38>:", "<called.isra.0+0x8>:"]
    assert named.replace(" <do_idle+0x38>", "").replace(" <called.isra.0+0x8>", "") == bare
    assert symbolic.execute("xp /4xg 0x100000") == plain.execute("xp /4xg 0x100000")


def test_instructions_with_names(monitors: tuple[Monitor, Monitor]) -> None:
    pytest.importorskip("capstone", reason="the extra disasm is not installed")
    plain, symbolic = monitors
    named = symbolic.execute("x /4i do_idle").splitlines()
    assert named[0].startswith(f"{CODE:#x} <do_idle>:  e8 3b")
    assert named[0].endswith(f"callq    {CODE + 0x40:#x} <called.isra.0>")
    assert named[1].startswith(f"{CODE + 5:#x} <do_idle+0x5>:  48 8b 05")
    assert named[1].endswith(f"  # {UTS + 0x104:#x} <jiffies+0x4>")
    assert named[2].endswith(f" {CODE:#x} <do_idle>")
    assert named[3].endswith("(%rip), %rax")
    bare = plain.execute(f"x /4i {CODE:#x}")
    assert "<" not in bare
    for line, unnamed in zip(named, bare.splitlines(), strict=True):
        assert line.split(":")[1].startswith(unnamed.split(":")[1])


@pytest.mark.parametrize(
    ("mnemonic", "operands", "behind"),
    [
        ("callq", "0x1000", " <at 0x1000>"),
        ("jne", "9", " <at 0x9>"),
        ("jmpq", "*0x1000(%rip)", "  # 0x2000 <at 0x2000>"),
        ("leaq", "-0x10(%rip), %rdi", "  # 0xff0 <at 0xff0>"),
        ("movb", "$0, (%rip)", "  # 0x1000 <at 0x1000>"),
        ("movq", "%gs:0x10(%rip), %rax", ""),
        ("movq", "$0x1000, %rax", ""),
        ("movq", "0x1000, %rax", ""),
        ("callq", "*%rax", ""),
        ("leaq", "-0x2000(%rip), %rdi", "  # 0xfffffffffffff000 <at 0xfffffffffffff000>"),
    ],
)
def test_what_an_instruction_refers_to(mnemonic: str, operands: str, behind: str) -> None:
    assert referred(lambda gva: f"at {gva:#x}", mnemonic, operands, 0x1000) == behind
    assert referred(lambda gva: None, mnemonic, operands, 0x1000) == ""
    assert referred(None, mnemonic, operands, 0x1000) == ""


def test_completion_knows_names_once_they_are_read(opened: tuple[Guest, Holder]) -> None:
    symbols = opened[0].symbols()
    assert candidates("", "add") == ["addr "]
    assert candidates("addr ", "do") == []
    assert candidates("addr ", "do", symbols) == ["do_idle "]
    assert candidates("addr ", "cop", symbols) == ["copy "]
    assert candidates("addr ", "", symbols) == []
    assert candidates("x /4i ", "do", symbols) == []
    assert candidates("x /4i ", "do", symbols, symbolic=True) == ["do_idle "]
    assert candidates("info ", "do", symbols, symbolic=True) == []


def test_a_name_is_bounded_when_it_occurs_often(
    monkeypatch: pytest.MonkeyPatch, opened: tuple[Guest, Holder]
) -> None:
    monkeypatch.setattr("sevkvm.monitor.symbols._MOST_SHOWN", 1)
    assert monitor_over(opened[0]).execute("addr copy") == f"0x{CODE + 0x50:016x}: copy\n... and 1 more\n"
