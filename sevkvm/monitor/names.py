"""The names after ``$`` in an expression: QEMU's, and what it has no name for.

QEMU knows the general registers by their 32-bit names (with all 64 bits), and neither control registers nor
``$rip``; those are added here: nobody's script breaks over a name that used to be an error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from sevkvm.abi.kvm import Dtable, Segment
    from sevkvm.vcpu import VcpuState

_MASK: Final = (1 << 64) - 1
_GENERAL: Final = {
    **{name: f"r{name[1:]}" for name in ("eax", "ebx", "ecx", "edx", "esi", "edi", "ebp", "esp", "eip")},
    **{name: name for name in ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", "rip", "rflags")},
    **{f"r{number}": f"r{number}" for number in range(8, 16)},
    "sp": "rsp",
    "eflags": "rflags",
}
_PC: Final = ("pc",)  # a linear address: with the code segment's base
_SEGMENTS: Final = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")
_CONTROL: Final = ("cr0", "cr2", "cr3", "cr4", "cr8", "efer")
_TABLES: Final = ("gdt", "idt")

NAMES: Final = (
    *_PC,
    *_GENERAL,
    *(f"{name}{part}" for name in _SEGMENTS for part in ("", ".limit", ".base")),
    *(f"{name}{part}" for name in _TABLES for part in (".limit", ".base")),
    *_CONTROL,
)


def value_of(name: str, state: VcpuState) -> int | None:
    """The register's 64 bits; None for no register, or one that is not known. Limits are sign-extended, as QEMU's."""
    if name in _PC:
        return (state.regs.rip + state.sregs.cs.base) & _MASK
    if name in _GENERAL:
        value: int = getattr(state.regs, _GENERAL[name])
        return value
    if name in _CONTROL:
        return None if name in state.unknown else getattr(state.sregs, name)
    base, _, part = name.partition(".")
    if base in _SEGMENTS and part in ("", "limit", "base") and name != f"{base}.":
        segment: Segment = getattr(state.sregs, base)
        return {"": segment.selector, "limit": _extended(segment.limit), "base": segment.base}[part]
    if base in _TABLES and part in ("limit", "base"):
        table: Dtable = getattr(state.sregs, base)
        return {"limit": table.limit, "base": table.base}[part]
    return None


def _extended(value: int) -> int:
    """32 bits as a signed number in 64."""
    return value | (_MASK & ~0xFFFFFFFF) if value >> 31 else value
