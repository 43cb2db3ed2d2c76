"""The registers we show gdb: their order and sizes, and a vCPU's values for them.

Source: "Debugging with GDB", appendix G.5.14 (i386 features): names and order of the core feature are gdb's. The
control registers are named as in the description that QEMU's own stub sends, in a feature of our own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from sevkvm.abi.kvmstate import Fpu
    from sevkvm.vcpu import VcpuState

_CORE: Final = "org.gnu.gdb.i386.core"
_SSE: Final = "org.gnu.gdb.i386.sse"
_SEGMENTS: Final = "org.gnu.gdb.i386.segments"
_CONTROL: Final = "org.sevkvm.x86.control"
FEATURES: Final = (_CORE, _SSE, _SEGMENTS, _CONTROL)


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
# from fiseg on: where the last x87 instruction was, which nobody told us
_FPU_CONTROL: Final = ("fctrl", "fstat", "ftag", "fiseg", "fioff", "foseg", "fooff", "fop")
_FLAG_TYPES: Final = {"cr0": "x86_cr0", "cr4": "x86_cr4", "efer": "x86_efer"}
_CONTROLS: Final = ("cr0", "cr2", "cr3", "cr4", "cr8", "efer")
_TABLES: Final = ("gdt", "idt")

REGISTERS: Final = (
    *(Register(name, 64, _POINTERS.get(name, "int64"), _CORE) for name in _GENERAL),
    Register("eflags", 32, "i386_eflags", _CORE),
    *(Register(name, 32, "int32", _CORE) for name in _SELECTORS),
    *(Register(f"st{number}", 80, "i387_ext", _CORE) for number in range(8)),
    *(Register(name, 32, "int32", _CORE, "float") for name in _FPU_CONTROL),
    *(Register(f"xmm{number}", 128, "vec128", _SSE) for number in range(16)),
    Register("mxcsr", 32, "i386_mxcsr", _SSE, "vector"),
    Register("fs_base", 64, "int64", _SEGMENTS),
    Register("gs_base", 64, "int64", _SEGMENTS),
    Register("k_gs_base", 64, "int64", _CONTROL, "system"),
    *(Register(name, 64, _FLAG_TYPES.get(name, "int64"), _CONTROL, "system") for name in _CONTROLS),
    *(
        register
        for name in _TABLES
        for register in (
            Register(f"{name}_base", 64, "int64", _CONTROL, "system"),
            Register(f"{name}_limit", 32, "int32", _CONTROL, "system"),
        )
    ),
    Register("tr", 32, "int32", _CONTROL, "system"),
    Register("ldtr", 32, "int32", _CONTROL, "system"),
)


def values(state: VcpuState, fpu: Fpu | None = None) -> dict[str, int]:
    """What KVM told of :data:`REGISTERS`; those that nobody told are missing. ``cr3`` is as the vCPU has it."""
    regs, sregs = state.regs, state.sregs
    told = {name: getattr(regs, name) for name in _GENERAL}
    told["eflags"] = regs.rflags
    told |= {name: getattr(sregs, name).selector for name in _SELECTORS}
    told |= {"fs_base": sregs.fs.base, "gs_base": sregs.gs.base}
    if state.kernel_gs_base is not None:
        told["k_gs_base"] = state.kernel_gs_base
    told |= {name: getattr(sregs, name) for name in _CONTROLS if name not in state.unknown}
    for name in _TABLES:
        told |= {f"{name}_base": getattr(sregs, name).base, f"{name}_limit": getattr(sregs, name).limit}
    told |= {"tr": sregs.tr.selector, "ldtr": sregs.ldt.selector}
    return told if fpu is None else told | _fpu_values(fpu)


def _fpu_values(fpu: Fpu) -> dict[str, int]:
    told = {f"st{number}": low | high << 64 for number, (low, high) in enumerate(fpu.fpr)}
    told |= {"fctrl": fpu.fcw, "fstat": fpu.fsw, "ftag": _full_tags(fpu)}
    told |= {f"xmm{number}": low | high << 64 for number, (low, high) in enumerate(fpu.xmm)}
    return told | {"mxcsr": fpu.mxcsr}


def _full_tags(fpu: Fpu) -> int:
    """The tag word of FSAVE, two bits a physical register, from that of FXSAVE, which has one (not empty).

    Source: AMD64 APM volume 2, section 11.4.4 (FXSAVE: the tag of a register follows from what it holds).
    """
    top, tags = fpu.fsw >> 11 & 7, 0
    for physical in range(8):
        mantissa, exponent = fpu.fpr[(physical - top) & 7]
        exponent &= 0x7FFF
        if not fpu.ftwx >> physical & 1:
            tag = 3  # empty
        elif not exponent and not mantissa:
            tag = 1  # zero
        elif 0 < exponent < 0x7FFF and mantissa >> 63:
            tag = 0  # a normal number
        else:
            tag = 2  # infinity, NaN, denormal or none of these
        tags |= tag << 2 * physical
    return tags


def pack(register: Register, told: dict[str, int]) -> bytes:
    """A register as hexadecimal digits in guest byte order; ``x`` digits where its value is not known."""
    value = told.get(register.name)
    if value is None:
        return b"xx" * register.nbytes
    return (value & (1 << register.nbits) - 1).to_bytes(register.nbytes, "little").hex().encode()
