"""The monitor over a guest made of bytes, and over one on the pretend host: what QEMU cannot be asked about."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sevkvm.abi.kvm import Segment
from sevkvm.abi.policybits import POLICY_ES
from sevkvm.guest import Guest
from sevkvm.lab.demo import DemoOptions, demo_image
from sevkvm.lab.image import Image
from sevkvm.memory.source import Slot, SlotMap
from sevkvm.monitor import instructions, memorytree
from sevkvm.monitor.completion import candidates
from sevkvm.monitor.monitor import Monitor
from sevkvm.monitor.outside import NoOutside
from sevkvm.monitor.registers import registers_text
from sevkvm.monitor.runcontrol import RunControl
from sevkvm.monitor.segments import segment_line
from sevkvm.monitor.table import COMMANDS, INFO
from sevkvm.paging.form import PagingMode
from tests.support.fakeguest import vcpu_state
from tests.unit.test_guest import CBIT, MIB, Holder, launch, open_fake


class Outside(NoOutside):
    """A VMM's monitor that says what it is told to say."""

    def __init__(self, **answers: str | None) -> None:
        self.answers = answers
        self.asked: list[str] = []

    def ask(self, command: str) -> str | None:  # type: ignore[override]
        self.asked.append(command)
        return self.answers.get(command.replace(" ", "_"))


@pytest.fixture(scope="module")
def image() -> Image:
    return demo_image(DemoOptions(memory_nbytes=8 * MIB, cbit_pos=CBIT, vcpus=2, pcid=True))


@pytest.fixture
def guest(image: Image) -> tuple[Guest, Holder]:
    return open_fake(launch(image))


def monitor_over(guest: Guest, outside: Any = None, **options: Any) -> Monitor:
    outside = outside or NoOutside()
    return Monitor(guest, outside, RunControl(guest, outside), **options)


def test_a_command_holds_the_vcpus_once_and_lets_them_go(guest: tuple[Guest, Holder]) -> None:
    opened, holder = guest
    monitor = monitor_over(opened)
    for line in ("x /4xg $rip", "info mem", "gva2gpa $rip", "info registers -a", "x /4xg 0x10", "x /4xg 1/0"):
        before = holder.holds
        monitor.execute(line)
        assert (holder.holds, holder.held) == (before + 1, False), line
    before = holder.holds
    for line in ("", "help", "info", "print 1+1", "print $nothing", "gpa2hva 0x1000", "nonsense", "quit"):
        monitor.execute(line)
    assert holder.holds == before


def test_memory_is_read_afresh_for_each_command(guest: tuple[Guest, Holder]) -> None:
    opened, _ = guest
    monitor = monitor_over(opened)
    costs = []
    for _ in range(2):
        before = opened.stats()["firmware_commands"]
        monitor.execute("xp /1xg 0x1000")
        costs.append(opened.stats()["firmware_commands"] - before)
    assert costs == [1, 1]


def test_stop_without_a_monitor_is_our_own_hold_and_says_so(guest: tuple[Guest, Holder]) -> None:
    opened, holder = guest
    outside = Outside()
    control = RunControl(opened, outside)
    monitor = Monitor(opened, outside, control)
    with control:
        assert monitor.execute("info status") == "VM status: running\n"
        assert "sevkvm itself holds" in monitor.execute("stop")
        assert (holder.held, monitor.execute("info status")) == (True, "VM status: paused\n")
        monitor.execute("x /4xg $rip")
        assert holder.held
        assert monitor.execute("cont") == ""
        assert not holder.held
        assert "does not hold" in monitor.execute("cont")
        monitor.execute("stop")
    assert not holder.held


def test_stop_with_a_monitor_is_the_vmms(guest: tuple[Guest, Holder]) -> None:
    opened, holder = guest
    outside = Outside(stop="", cont="", info_status="VM status: paused\n")
    monitor = monitor_over(opened, outside)
    assert [monitor.execute(line) for line in ("stop", "info status", "cont")] == [
        "",
        "VM status: paused\n",
        "",
    ]
    assert holder.holds == 0
    assert outside.asked == ["stop", "info status", "cont"]


def test_cpu_chooses_registers_and_tables(guest: tuple[Guest, Holder]) -> None:
    opened, _ = guest
    monitor = monitor_over(opened)
    states = opened.registers()
    assert monitor.execute("print /x $rax") == f"0x{states[0].regs.rax:x}\n"
    assert monitor.execute("cpu 1") == ""
    assert monitor.execute("print /x $rax") == f"0x{states[1].regs.rax:x}\n"
    assert states[0].regs.rax != states[1].regs.rax
    assert monitor.execute("info cpus") == "  CPU #0: thread_id=unknown\n* CPU #1: thread_id=unknown\n"
    assert monitor.execute("cpu 2") == "invalid CPU index\n"


def test_a_sev_es_guest_has_memory_and_no_registers(image: Image) -> None:
    opened, _ = open_fake(
        launch(image, POLICY_ES, es=True),
        no_registers="this is a SEV-ES guest",
        cr3=image.vcpus[0].sregs.cr3,
        paging=PagingMode.LEVEL4,
    )
    monitor = monitor_over(opened)
    for line in ("info registers", "print $rip", "x $rsp"):
        assert monitor.execute(line).startswith("Error: this is a SEV-ES guest\nhint: "), line
        assert monitor.status == 1
    mapping = next(m for m in image.mappings if m.private and not m.nx)
    assert monitor.execute(f"gva2gpa {mapping.gva}") == f"gpa: 0x{mapping.gpa:x}\n"


def test_an_answer_is_cut_before_it_is_too_long(guest: tuple[Guest, Holder]) -> None:
    opened, holder = guest
    monitor = monitor_over(opened, output_nbytes=1000)
    said = monitor.execute("xp /100000xg 0")
    assert len(said) < 1100
    assert said.endswith("\n... cut after 1000 bytes\n")
    assert (monitor.status, holder.held) == (1, False)


def test_without_capstone_the_bytes_are_all_there_is(
    guest: tuple[Guest, Holder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "capstone", None)
    monitor = monitor_over(guest[0])
    assert "needs capstone" in monitor.execute("x /i $rip")
    assert monitor.status == 1
    assert monitor.execute("x /xb $rip").startswith("ffff")


@given(line=st.text(max_size=60))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
def test_any_line_is_answered_with_text(guest: tuple[Guest, Holder], line: str) -> None:
    monitor = monitor_over(guest[0], Outside())
    assert isinstance(monitor.execute(line), str)


NAMES = [command.names.split("|")[0] for command in COMMANDS] + [f"info {command.names}" for command in INFO]


@given(st.sampled_from(NAMES), st.text(alphabet="$pc0x19/iwgbxduoc -afzls\"'()+*%~\\?.", max_size=20))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
def test_any_arguments_are_answered_with_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, guest: tuple[Guest, Holder], name: str, rest: str
) -> None:
    monkeypatch.chdir(tmp_path)  # memsave takes anything for a file name
    monitor = monitor_over(guest[0], Outside(), output_nbytes=1 << 16)
    with monitor.control:
        assert isinstance(monitor.execute(f"{name} {rest}"), str)
    assert not guest[1].held


def test_what_an_error_is_called_leads_to_the_help(guest: tuple[Guest, Holder]) -> None:
    monitor = monitor_over(guest[0])
    for name in NAMES:
        said = monitor.execute(f"help {name}")
        assert " -- " in said, name
        assert "unknown" not in said, name
    assert monitor.execute("help").count("\n") > len(COMMANDS)


@pytest.mark.parametrize(
    ("spelled", "expected"),
    [
        ("$18446744073709551615, 0x78(%rsp)", "$-1, 0x78(%rsp)"),
        ("$18446744073709551607, %rax", "$-9, %rax"),
        ("$18446744073709551606, %rax", "$18446744073709551606, %rax"),
        ("$0x10, %rax", "$0x10, %rax"),
    ],
)
def test_small_negative_operands_have_their_sign(spelled: str, expected: str) -> None:
    assert list(instructions._lines(0, b"\x90", "movq", spelled)) == [
        f"0x00000000:  {'90':<24} movq     {expected}\n"
    ]


def test_completion() -> None:
    assert candidates("", "gpa") == ["gpa2hpa ", "gpa2hva "]
    assert candidates("info ", "m") == ["mem ", "mtree "]
    assert candidates("help ", "memsa") == ["memsave "]
    assert candidates("help info ", "tl") == ["tlb "]
    assert candidates("x /4xg ", "$ri") == ["$rip"]
    assert candidates("x /4xg ", "12") == []


def test_the_memory_tree_of_slots_alone() -> None:
    slots = SlotMap(
        [
            Slot(0, 0xC0000, 0x7F00_0000_0000, "pc.ram"),
            Slot(0xC0000, 0x20000, 0x7E00_0000_0000, "pc.rom", True),
            Slot(0x100000, 0xFF00000, 0x7F00_0010_0000, "pc.ram"),
        ]
    )
    assert "".join(memorytree.flat_view(slots)) == (
        'FlatView #0\n AS "memory", root: system\n Root memory region: system\n'
        "  0000000000000000-00000000000bffff (prio 0, ram): pc.ram KVM\n"
        "  00000000000c0000-00000000000dffff (prio 0, rom): pc.rom KVM\n"
        "  0000000000100000-000000000fffffff (prio 0, ram): pc.ram @0000000000100000 KVM\n\n"
    )


@pytest.mark.parametrize(
    ("segment", "lma", "letters"),
    [
        (Segment(type=0xB, present=1, s=1, l=1, g=1), True, "CS64 [-RA]"),
        (Segment(type=0xE, present=1, s=1, db=1), False, "CS32 [CR-]"),
        (Segment(type=8, present=1, s=1), False, "CS16 [---]"),
        (Segment(type=3, present=1, s=1), False, "DS16 [-WA]"),
        (Segment(type=6, present=1, s=1), True, "DS   [EW-]"),
        (Segment(type=3, present=1), False, "TSS16-busy"),
        (Segment(type=0xB, present=1), False, "TSS32-busy"),
        (Segment(type=0xB, present=1), True, "TSS64-busy"),
    ],
)
def test_segments_in_letters(segment: Segment, lma: bool, letters: str) -> None:
    sregs = vcpu_state(0).sregs
    line = segment_line("cs", segment, sregs, long=lma, lma=lma)
    assert line.rstrip().endswith(f" DPL=0 {letters}")
    assert "DPL" not in segment_line("cs", segment, sregs._replace(cr0=0), long=lma, lma=lma)
    assert "DPL" not in segment_line("cs", segment._replace(unusable=1), sregs, long=lma, lma=lma)


def test_registers_that_nobody_tells_are_left_out() -> None:
    state = vcpu_state(0)
    state = state._replace(unknown=frozenset({"efer", "cr8"}))
    text = "".join(registers_text(state, None))
    assert "RIP=" in text
    assert not any(word in text for word in ("EFER", "DR0", "FCW", "XMM", "HLT"))
