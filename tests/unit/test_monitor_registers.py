"""Registers in the monitor's words: 64-bit, 32-bit, of several vCPUs, and words that make no sense."""

from __future__ import annotations

import pytest

from sevkvm.abi.hmpregisters import NOT_IN_MONITOR, parse_registers
from sevkvm.errors import ProtocolError
from sevkvm.host.monitorvcpu import MonitorRegisters, MonitorVcpu
from tests.unit.test_lab_registers import CPU0, CPU1

REAL_MODE = """
CPU#0
EAX=00000001 EBX=00000002 ECX=00000003 EDX=00800f12
ESI=00000004 EDI=00000005 EBP=00000006 ESP=00006f00
EIP=0000fff0 EFL=00000002 [-------] CPL=0 II=0 A20=1 SMM=0 HLT=0
ES =0000 00000000 0000ffff 00009300
CS =f000 ffff0000 0000ffff 00009b00
SS =0000 00000000 0000ffff 00009300
DS =0000 00000000 0000ffff 00009300
FS =0000 00000000 0000ffff 00009300
GS =0000 00000000 0000ffff 00009300
LDT=0000 00000000 0000ffff 00008200
TR =0000 00000000 0000ffff 00008b00
GDT=     00000000 0000ffff
IDT=     00000000 0000ffff
CR0=60000010 CR2=00000000 CR3=00000000 CR4=00000000
DR0=0000000000000000 DR1=0000000000000000 DR2=0000000000000000 DR3=0000000000000000
EFER=0000000000000000
"""


def test_a_vcpu_in_real_mode() -> None:
    (told,) = parse_registers(REAL_MODE)
    assert (told.regs.rax, told.regs.rdx, told.regs.rsp, told.regs.rip) == (1, 0x800F12, 0x6F00, 0xFFF0)
    assert (told.regs.r8, told.regs.r15, told.regs.rflags) == (0, 0, 2)
    assert (told.sregs.cs.selector, told.sregs.cs.base) == (0xF000, 0xFFFF0000)
    assert (told.sregs.cr0, told.sregs.efer) == (0x60000010, 0)
    assert told.unknown == NOT_IN_MONITOR == {"cr8", "apic_base"}


def test_one_answer_is_one_moment_for_all_vcpus() -> None:
    asked = []

    def ask(command: str) -> str:
        asked.append(command)
        return (CPU0 + CPU1).replace("RAX=ffffffff876178a0", f"RAX={len(asked):016x}")

    registers = MonitorRegisters(ask)
    first, second = MonitorVcpu(registers, 0), MonitorVcpu(registers, 1)
    for moment in (1, 2):
        assert (first.get_regs().rax, first.get_sregs().cr3) == (moment, 0x27FC000)
        assert (second.get_regs().rax, second.get_sregs().cr3) == (moment, 0x297C000)
    assert asked == ["info registers -a"] * 2
    assert first.get_msr(0xC0000102) is None


def test_a_vcpu_that_the_monitor_does_not_name() -> None:
    registers = MonitorRegisters(lambda command: CPU0)
    with pytest.raises(ProtocolError, match="does not tell vCPU 3"):
        MonitorVcpu(registers, 3).get_regs()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "CPU#0",
        "CPU#0\n" * 1000,
        CPU0.replace("RIP=ffffffff87617a0b", "RIP=xyz"),
        CPU0.replace("CR3=00000000027fc000", "CR3=-1"),
        "CPU#99999999999\n" + CPU0.replace("CPU#0", ""),
        CPU0[: len(CPU0) // 2],
    ],
)
def test_what_makes_no_sense_is_said_to(text: str) -> None:
    with pytest.raises(ProtocolError, match="info registers -a"):
        parse_registers(text)
