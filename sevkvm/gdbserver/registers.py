"""The registers we show gdb: their order, sizes and description, and a vCPU's values for them.

Source: "Debugging with GDB", appendix G.5.14 (i386 features): names and order of the core feature are gdb's. The
control registers are named as in the description that QEMU's own stub sends, in a feature of our own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sevkvm.vcpu import VcpuState

CORE: Final = "org.gnu.gdb.i386.core"
SEGMENTS: Final = "org.gnu.gdb.i386.segments"
CONTROL: Final = "org.sevkvm.x86.control"


class Register(NamedTuple):
    """One register; ``type`` and ``group`` are words of gdb's target descriptions."""

    name: str
    nbits: int
    type: str
    feature: str
    group: str = ""

    @property
    def nbytes(self) -> int:
        """Its size in a packet."""
        return self.nbits // 8


_POINTERS: Final = {"rbp": "data_ptr", "rsp": "data_ptr", "rip": "code_ptr"}
_GENERAL: Final = (
    *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp"),
    *("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip"),
)
_SELECTORS: Final = ("cs", "ss", "ds", "es", "fs", "gs")
_FPU_CONTROL: Final = ("fctrl", "fstat", "ftag", "fiseg", "fioff", "foseg", "fooff", "fop")
_FLAG_TYPES: Final = {"cr0": "x86_cr0", "cr4": "x86_cr4", "efer": "x86_efer"}
_CONTROL: Final = ("cr0", "cr2", "cr3", "cr4", "cr8", "efer")
_TABLES: Final = ("gdt", "idt")

REGISTERS: Final = (
    *(Register(name, 64, _POINTERS.get(name, "int64"), CORE) for name in _GENERAL),
    Register("eflags", 32, "i386_eflags", CORE),
    *(Register(name, 32, "int32", CORE) for name in _SELECTORS),
    *(Register(f"st{number}", 80, "i387_ext", CORE) for number in range(8)),
    *(Register(name, 32, "int32", CORE, "float") for name in _FPU_CONTROL),
    Register("fs_base", 64, "int64", SEGMENTS),
    Register("gs_base", 64, "int64", SEGMENTS),
    Register("k_gs_base", 64, "int64", CONTROL, "system"),
    *(Register(name, 64, _FLAG_TYPES.get(name, "int64"), CONTROL, "system") for name in _CONTROL),
    *(
        register
        for name in _TABLES
        for register in (
            Register(f"{name}_base", 64, "int64", CONTROL, "system"),
            Register(f"{name}_limit", 32, "int32", CONTROL, "system"),
        )
    ),
    Register("tr", 32, "int32", CONTROL, "system"),
    Register("ldtr", 32, "int32", CONTROL, "system"),
)

# AMD64 Architecture Programmer's Manual, volume 2, sections 3.1.1, 3.1.3, 3.1.7 and 3.2; bit numbers
_FLAGS: Final = {
    "i386_eflags": (
        *(("CF", 0), ("", 1), ("PF", 2), ("AF", 4), ("ZF", 6), ("SF", 7), ("TF", 8), ("IF", 9), ("DF", 10)),
        *(("OF", 11), ("NT", 14), ("RF", 16), ("VM", 17), ("AC", 18), ("VIF", 19), ("VIP", 20), ("ID", 21)),
    ),
    "x86_cr0": (
        *(("PE", 0), ("MP", 1), ("EM", 2), ("TS", 3), ("ET", 4), ("NE", 5)),
        *(("WP", 16), ("AM", 18), ("NW", 29), ("CD", 30), ("PG", 31)),
    ),
    "x86_cr4": (
        *(("VME", 0), ("PVI", 1), ("TSD", 2), ("DE", 3), ("PSE", 4), ("PAE", 5), ("MCE", 6), ("PGE", 7)),
        *(("PCE", 8), ("OSFXSR", 9), ("OSXMMEXCPT", 10), ("UMIP", 11), ("LA57", 12), ("FSGSBASE", 16)),
        *(("PCIDE", 17), ("OSXSAVE", 18), ("SMEP", 20), ("SMAP", 21), ("PKE", 22), ("CET", 23)),
    ),
    "x86_efer": (
        *(("SCE", 0), ("LME", 8), ("LMA", 10), ("NXE", 11), ("SVME", 12), ("LMSLE", 13), ("FFXSR", 14)),
        ("TCE", 15),
    ),
}


def target_xml() -> str:
    """The target description: what gdb asks for as ``target.xml``."""
    return "\n".join(_xml_lines()) + "\n"


def _xml_lines() -> Iterator[str]:
    yield '<?xml version="1.0"?>'
    yield '<!DOCTYPE target SYSTEM "gdb-target.dtd">'
    yield '<target version="1.0">'
    yield "  <architecture>i386:x86-64</architecture>"
    for feature in (CORE, SEGMENTS, CONTROL):
        registers = [register for register in REGISTERS if register.feature == feature]
        yield f'  <feature name="{feature}">'
        for name in dict.fromkeys(register.type for register in registers if register.type in _FLAGS):
            nbytes = 4 if name == "i386_eflags" else 8
            yield f'    <flags id="{name}" size="{nbytes}">'
            for flag, bit in _FLAGS[name]:
                yield f'      <field name="{flag}" start="{bit}" end="{bit}"/>'
            yield "    </flags>"
        for register in registers:
            group = f' group="{register.group}"' if register.group else ""
            yield f'    <reg name="{register.name}" bitsize="{register.nbits}" type="{register.type}"{group}/>'
        yield "  </feature>"
    yield "</target>"


def values(state: VcpuState) -> dict[str, int]:
    """What KVM told of :data:`REGISTERS`; those that nobody told are missing. ``cr3`` is as the vCPU has it."""
    regs, sregs = state.regs, state.sregs
    told = {name: getattr(regs, name) for name in _GENERAL}
    told["eflags"] = regs.rflags
    told |= {name: getattr(sregs, name).selector for name in _SELECTORS}
    told |= {"fs_base": sregs.fs.base, "gs_base": sregs.gs.base}
    if state.kernel_gs_base is not None:
        told["k_gs_base"] = state.kernel_gs_base
    told |= {name: getattr(sregs, name) for name in _CONTROL if name not in state.unknown}
    for name in _TABLES:
        told |= {f"{name}_base": getattr(sregs, name).base, f"{name}_limit": getattr(sregs, name).limit}
    return told | {"tr": sregs.tr.selector, "ldtr": sregs.ldt.selector}


def pack(register: Register, told: dict[str, int]) -> bytes:
    """A register as hexadecimal digits in guest byte order; ``x`` digits where its value is not known."""
    value = told.get(register.name)
    if value is None:
        return b"xx" * register.nbytes
    return (value & (1 << register.nbits) - 1).to_bytes(register.nbytes, "little").hex().encode()
