"""The parser against what QEMU 7.2 printed for a Linux with two vCPUs (floating-point registers cut short)."""

from __future__ import annotations

import pytest

from sevkvm.abi.kvm import Dtable, Segment
from sevkvm.errors import ProtocolError
from sevkvm.lab.registers import parse_registers

CPU0 = """
CPU#0
RAX=ffffffff876178a0 RBX=0000000000000000 RCX=0000000000000001 RDX=4000000000000000
RSI=0000000000000083 RDI=0000000000001c74 RBP=ffffffff8861aa40 RSP=ffffffff88603e98
R8 =0000000000000008 R9 =000000003457c97b R10=00000000fffffffb R11=0000000000000001
R12=000000000000000c R13=000000000000000d R14=000000000000000e R15=0000000000014790
RIP=ffffffff87617a0b RFL=00000202 [-------] CPL=0 II=0 A20=1 SMM=0 HLT=1
ES =0000 0000000000000000 00000000 00000000
CS =0010 0000000000000000 ffffffff 00af9b00 DPL=0 CS64 [-RA]
SS =0018 0000000000000000 ffffffff 00cf9300 DPL=0 DS   [-WA]
DS =0000 0000000000000000 00000000 00000000
FS =0000 0000000000000000 00000000 00000000
GS =0000 ff2c2880cf600000 00000000 00000000
LDT=0000 0000000000000000 00000000 00008200 DPL=0 LDT
TR =0040 fffffe0000003000 00004087 00008900 DPL=0 TSS64-avl
GDT=     fffffe0000001000 0000007f
IDT=     fffffe0000000000 00000fff
CR0=80050033 CR2=00000000005794a9 CR3=00000000027fc000 CR4=003516b0
DR0=0000000000000000 DR1=0000000000000000 DR2=0000000000000000 DR3=0000000000000000\x20
DR6=00000000ffff0ff0 DR7=0000000000000400
EFER=0000000000000d01
FCW=037f FSW=0000 [ST=0] FTW=00 MXCSR=00001f80
FPR0=0000000000000000 0000 FPR1=0000000000000000 0000
YMM00=0000000000000000 0000000000000000 0000000000000000 408f400000000000
"""
CPU1 = CPU0.replace("CPU#0", "CPU#1").replace("CR3=00000000027fc000", "CR3=000000000297c000")


def test_general_registers() -> None:
    (vcpu,) = parse_registers(CPU0)
    assert vcpu.regs.rax == 0xFFFFFFFF876178A0
    assert vcpu.regs.r8 == 8
    assert (vcpu.regs.r12, vcpu.regs.r13, vcpu.regs.r14) == (12, 13, 14)
    assert vcpu.regs.rip == 0xFFFFFFFF87617A0B
    assert vcpu.regs.rflags == 0x202


def test_segments_and_tables() -> None:
    (vcpu,) = parse_registers(CPU0)
    sregs = vcpu.sregs
    assert sregs.cs == Segment(limit=0xFFFFFFFF, selector=0x10, type=0xB, present=1, s=1, l=1, g=1)
    assert sregs.ss == Segment(limit=0xFFFFFFFF, selector=0x18, type=3, present=1, db=1, s=1, g=1)
    assert sregs.gs == Segment(base=0xFF2C2880CF600000, unusable=1)
    assert sregs.tr == Segment(base=0xFFFFFE0000003000, limit=0x4087, selector=0x40, type=9, present=1)
    assert sregs.ldt.type == 2
    assert sregs.gdt == Dtable(0xFFFFFE0000001000, 0x7F)
    assert sregs.idt == Dtable(0xFFFFFE0000000000, 0xFFF)


def test_control_registers() -> None:
    (vcpu,) = parse_registers(CPU0)
    sregs = vcpu.sregs
    assert (sregs.cr0, sregs.cr2, sregs.cr3, sregs.cr4) == (0x80050033, 0x5794A9, 0x27FC000, 0x3516B0)
    assert sregs.efer == 0xD01


def test_every_vcpu_in_order_and_only_the_first_booted() -> None:
    first, second = parse_registers(CPU0 + CPU1)
    assert (first.sregs.cr3, second.sregs.cr3) == (0x27FC000, 0x297C000)
    assert (first.sregs.apic_base, second.sregs.apic_base) == (0xFEE00900, 0xFEE00800)


@pytest.mark.parametrize("line", ["RIP=", "TR =", "GDT=", "CR0=", "EFER="])
def test_a_missing_register_is_told(line: str) -> None:
    text = "".join(each for each in CPU0.splitlines(keepends=True) if not each.startswith(line))
    with pytest.raises(
        ProtocolError, match=f"CPU 0 has no (?i:{'rflags' if line == 'RIP=' else line[:3].strip()})"
    ):
        parse_registers(text)


def test_an_answer_of_another_kind_is_told() -> None:
    with pytest.raises(ProtocolError, match="names no CPU"):
        parse_registers("info registers: unknown command")
