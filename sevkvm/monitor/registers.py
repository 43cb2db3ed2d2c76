"""``info registers``: one vCPU as QEMU's monitor prints it.

What nobody tells is left out: a dump has no FPU, no debug registers, and no line ends in their values. A20 is printed
as open, which KVM does not tell: nothing but QEMU's own keyboard controller ever closes it. An AVX-512 guest's
registers are printed as YMM.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sevkvm.abi import x86
from sevkvm.monitor.command import Command
from sevkvm.monitor.fpu import fpu_lines
from sevkvm.monitor.problem import CommandProblem
from sevkvm.monitor.segments import segment_line

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sevkvm.abi.kvmstate import MoreState
    from sevkvm.monitor.arguments import Arguments
    from sevkvm.monitor.monitor import Monitor
    from sevkvm.vcpu import VcpuState

_LONG: Final = (
    ("RAX", "RBX", "RCX", "RDX"),
    ("RSI", "RDI", "RBP", "RSP"),
    ("R8 ", "R9 ", "R10", "R11"),
    ("R12", "R13", "R14", "R15"),
)
_SHORT: Final = (("EAX", "EBX", "ECX", "EDX"), ("ESI", "EDI", "EBP", "ESP"))
_FLAGS: Final = ((10, "D"), (11, "O"), (7, "S"), (6, "Z"), (4, "A"), (2, "P"), (0, "C"))
_SEGMENTS: Final = ("es", "cs", "ss", "ds", "fs", "gs", "ldt", "tr")


def info_registers(monitor: Monitor, given: Arguments) -> Iterator[str]:
    """All vCPUs, the one that was named, or the current one."""
    guest = monitor.guest
    states = guest.registers()
    if "all" not in given.flags:
        wanted = given.numbers["vcpu"] if "vcpu" in given.numbers else monitor.state().index
        states = [state for state in states if state.index == wanted]
        if not states:
            raise CommandProblem(f"CPU#{wanted} not available")
    for state in states:
        yield from registers_text(state, guest.more_state(state.index))


def registers_text(state: VcpuState, more: MoreState | None) -> Iterator[str]:
    """The lines of one vCPU, a blank one first."""
    sregs = state.sregs
    # a dump's EFER is not known: 64-bit code needs it, and so the segment tells
    lma = bool(sregs.efer & x86.EFER_LMA) or ("efer" in state.unknown and bool(sregs.cs.l))
    long = lma and bool(sregs.cs.l)
    yield f"\nCPU#{state.index}\n"
    yield from _general(state, long)
    yield _flags_line(state, more, long)
    for name in _SEGMENTS:
        yield segment_line(name, getattr(sregs, name), sregs, long=long, lma=lma)
    width = 16 if long else 8
    for name in ("gdt", "idt"):
        table = getattr(sregs, name)
        yield f"{name.upper()}=     {table.base:0{width}x} {table.limit:08x}\n"
    yield (f"CR0={sregs.cr0:08x} CR2={sregs.cr2:0{width}x} CR3={sregs.cr3:0{width}x} CR4={sregs.cr4:08x}\n")
    if more and more.debug:
        yield "".join(f"DR{n}={value:016x} " for n, value in enumerate(more.debug.addresses)) + "\n"
        yield f"DR6={more.debug.dr6:016x} DR7={more.debug.dr7:016x}\n"
    if "efer" not in state.unknown:
        yield f"EFER={sregs.efer:016x}\n"
    if more:
        yield from fpu_lines(more, sregs, long=long)


def _general(state: VcpuState, long: bool) -> Iterator[str]:
    for row in _LONG if long else _SHORT:
        cells = []
        for name in row:
            field = name.strip().lower()
            value = getattr(state.regs, field if long else f"r{field[1:]}")
            cells.append(f"{name}={value:016x}" if long else f"{name}={value & 0xFFFFFFFF:08x}")
        yield " ".join(cells) + "\n"


def _flags_line(state: VcpuState, more: MoreState | None, long: bool) -> str:
    regs = state.regs
    letters = "".join(letter if regs.rflags >> bit & 1 else "-" for bit, letter in _FLAGS)
    where = f"RIP={regs.rip:016x} RFL=" if long else f"EIP={regs.rip & 0xFFFFFFFF:08x} EFL="
    line = f"{where}{regs.rflags:08x} [{letters}] CPL={state.sregs.ss.dpl}"
    told = more and (("II", more.shadow), ("A20", True), ("SMM", more.smm), ("HLT", more.halted))
    return line + "".join(f" {name}={int(value)}" for name, value in told or () if value is not None) + "\n"


COMMANDS: Final = (
    Command(
        "registers",
        "all:-a,vcpu:i?",
        "[-a|vcpu]",
        "show the cpu registers (-a: show register info for all cpus; vcpu: specific vCPU to query; "
        "show the current CPU's registers if no argument is specified)",
        info_registers,
        still=True,
    ),
)
