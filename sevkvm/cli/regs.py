"""``sevkvm regs``: the registers of a guest's vCPUs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from sevkvm.abi import x86
from sevkvm.abi.elf import descriptor_flags
from sevkvm.cli.command import command as sevkvm_command
from sevkvm.cli.options import GuestSession, guest_options, json_option
from sevkvm.cli.render import hexadecimal, print_json
from sevkvm.errors import UsageError
from sevkvm.paging.mode import PagingMode
from sevkvm.vcpu import paging_mode, root_gpa

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sevkvm.abi.kvm import Segment
    from sevkvm.memory.policy import SevInfo
    from sevkvm.vcpu import VcpuState

_GENERAL = (
    ("rax", "rbx", "rcx", "rdx"),
    ("rsi", "rdi", "rbp", "rsp"),
    ("r8", "r9", "r10", "r11"),
    ("r12", "r13", "r14", "r15"),
)
_SEGMENTS = ("es", "cs", "ss", "ds", "fs", "gs", "ldt", "tr")
_MODE_NAMES = {
    PagingMode.OFF: "off",
    PagingMode.LEGACY: "32-bit",
    PagingMode.PSE: "32-bit",
    PagingMode.PAE: "pae",
    PagingMode.LEVEL4: "4-level",
    PagingMode.LEVEL5: "5-level",
}


@sevkvm_command(
    "regs",
    examples="""
    sevkvm regs --pid 4242
    sevkvm regs --pid 4242 --vcpu 1
    # of a dump; what it does not tell is shown as ?
    sevkvm regs --file guest.core
    # of a SEV-ES guest whose VMRUN failed, with kvm_amd.dump_invalid_vmcb=1
    dmesg | sevkvm regs --vmsa - --cbit-pos 51
    # where each vCPU executes
    sevkvm regs --pid 4242 --json | jq -r '.[] | "\\(.index) \\(.rip)"'
    """,
)
@click.option(
    "--vmsa",
    metavar="FILE",
    type=click.Path(),
    help="Out of decrypted VMSA pages, or of a kernel log that shows them (dump_invalid_vmcb); - is standard input.",
)
@guest_options
@json_option
def command(session: GuestSession, vmsa: str | None, as_json: bool) -> None:
    """Show the registers of every vCPU, or of the one that --vcpu names.

    The vCPUs are stopped for as long as reading takes, all of them at once. CR3 is printed as the vCPU has it; the
    line below tells the tables' address without C-bit and PCID. An SEV-ES guest's registers cannot be read: they
    are in its VMSAs, which --vmsa reads where somebody has got at them. vCPUs are numbered there as they come.
    """
    if vmsa is None:
        with session.open() as guest:
            states = guest.registers()
        info, indexes = guest.sev, list(guest.vcpu_indexes)
    else:
        from sevkvm.cli.regs_vmsa import registers

        states, info = registers(vmsa, session)
        indexes = [state.index for state in states]
    wanted = session.arguments["vcpu"]
    if wanted is not None:
        states = [state for state in states if state.index == wanted]
        if not states:
            known = ", ".join(map(str, indexes))
            raise UsageError(f"no vCPU {wanted}", help=f"this guest's vCPUs: {known}")
    if as_json:
        print_json([_as_json(state, info) for state in states])
        return
    click.echo("\n\n".join("\n".join(_lines(state, info)) for state in states))


def _lines(state: VcpuState, info: SevInfo) -> Iterator[str]:
    """The layout of QEMU's ``info registers``, without what KVM was not asked for."""
    regs, sregs = state.regs, state.sregs
    yield f"CPU#{state.index}"
    for row in _GENERAL:
        yield " ".join(f"{name.upper():3}={getattr(regs, name):016x}" for name in row)
    yield f"RIP={regs.rip:016x} RFL={regs.rflags:08x} CPL={sregs.ss.dpl}"
    for name in _SEGMENTS:
        segment: Segment = getattr(sregs, name)
        flags = descriptor_flags(segment)
        yield (
            f"{name.upper():3}={segment.selector:04x} {segment.base:016x} {segment.limit:08x} {flags:08x}"
            f" DPL={segment.dpl}{' unusable' if segment.unusable else ''}"
        )
    for name in ("gdt", "idt"):
        table = getattr(sregs, name)
        yield f"{name.upper()}=     {table.base:016x} {table.limit:08x}"
    cr8 = "?" if "cr8" in state.unknown else f"{sregs.cr8:x}"
    yield f"CR0={sregs.cr0:08x} CR2={sregs.cr2:016x} CR3={sregs.cr3:016x} CR4={sregs.cr4:08x} CR8={cr8}"
    told = {name: f"{getattr(sregs, name):016x}" for name in ("efer", "apic_base")}
    told |= {name: "?" * 16 for name in told if name in state.unknown}
    yield f"EFER={told['efer']} APIC={told['apic_base']}"
    yield f"paging: {_paging(state, info)}"


def _paging(state: VcpuState, info: SevInfo) -> str:
    mode, root = paging_mode(state.sregs), _root(state, info)
    words = [_MODE_NAMES[mode]]
    if mode is PagingMode.OFF:
        return words[0]
    if mode is PagingMode.PSE:
        words.append("4 MiB pages")
    words.append(
        "tables' address unknown without the C-bit's position"
        if root is None
        else f"tables at gpa 0x{root:x}"
    )
    if info.cbit_pos is not None and info.encrypted and mode.long:
        words.append(f"C-bit {info.cbit_pos} {'set' if state.sregs.cr3 >> info.cbit_pos & 1 else 'clear'}")
    if state.sregs.cr4 & x86.CR4_PCIDE:
        words.append(f"PCID {state.sregs.cr3 & 0xFFF}")
    return ", ".join(words)


def _root(state: VcpuState, info: SevInfo) -> int | None:
    """The top table's gpa; None with paging off, or where the C-bit's position is not known."""
    mode = paging_mode(state.sregs)
    if mode is PagingMode.OFF or (info.encrypted and info.cbit_pos is None):
        return None
    return root_gpa(state.sregs.cr3, mode, info.cbit_pos if info.encrypted else None)


def _as_json(state: VcpuState, info: SevInfo) -> dict[str, Any]:
    sregs = state.sregs
    answer: dict[str, Any] = {"index": state.index}
    answer |= {name: hexadecimal(value) for name, value in state.regs._asdict().items()}
    for name in _SEGMENTS:
        segment: Segment = getattr(sregs, name)
        answer[name] = {
            "selector": hexadecimal(segment.selector),
            "base": hexadecimal(segment.base),
            "limit": hexadecimal(segment.limit),
            "flags": hexadecimal(descriptor_flags(segment)),
            "unusable": bool(segment.unusable),
        }
    for name in ("gdt", "idt"):
        table = getattr(sregs, name)
        answer[name] = {"base": hexadecimal(table.base), "limit": hexadecimal(table.limit)}
    for name in ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base"):
        answer[name] = None if name in state.unknown else hexadecimal(getattr(sregs, name))
    mode = paging_mode(sregs)
    answer["paging"] = {
        "mode": _MODE_NAMES[mode],
        "pse": mode is PagingMode.PSE,
        "root_gpa": hexadecimal(_root(state, info)),
    }
    return answer
