"""The target description: gdb's ``target.xml`` for our registers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from sevkvm.gdbserver.registers import FEATURES, REGISTERS

# AMD64 Architecture Programmer's Manual, volume 2, sections 3.1.1, 3.1.3, 3.1.7 and 3.2; volume 1, section 4.2.2:
# bit numbers
_FLAGS: Final = {
    "i386_eflags": (
        *(("CF", 0), ("", 1), ("PF", 2), ("AF", 4), ("ZF", 6), ("SF", 7), ("TF", 8), ("IF", 9), ("DF", 10)),
        *(("OF", 11), ("NT", 14), ("RF", 16), ("VM", 17), ("AC", 18), ("VIF", 19), ("VIP", 20), ("ID", 21)),
    ),
    "i386_mxcsr": (
        *(("IE", 0), ("DE", 1), ("ZE", 2), ("OE", 3), ("UE", 4), ("PE", 5), ("DAZ", 6), ("IM", 7), ("DM", 8)),
        *(("ZM", 9), ("OM", 10), ("UM", 11), ("PM", 12), ("FZ", 15)),
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
_HALF_SIZED: Final = ("i386_eflags", "i386_mxcsr")  # 4 bytes, the others 8
_VECTORS: Final = (
    *(("v4f", "ieee_single", 4), ("v2d", "ieee_double", 2), ("v16i8", "int8", 16)),
    *(("v8i16", "int16", 8), ("v4i32", "int32", 4), ("v2i64", "int64", 2)),
)
_VIEWS: Final = (
    *(("v4_float", "v4f"), ("v2_double", "v2d"), ("v16_int8", "v16i8"), ("v8_int16", "v8i16")),
    *(("v4_int32", "v4i32"), ("v2_int64", "v2i64"), ("uint128", "uint128")),
)


def target_xml() -> str:
    """The whole document."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield '<?xml version="1.0"?>'
    yield '<!DOCTYPE target SYSTEM "gdb-target.dtd">'
    yield '<target version="1.0">'
    yield "  <architecture>i386:x86-64</architecture>"
    for feature in FEATURES:
        registers = [register for register in REGISTERS if register.feature == feature]
        yield f'  <feature name="{feature}">'
        for name in dict.fromkeys(register.type for register in registers):
            yield from _type(name)
        for register in registers:
            group = f' group="{register.group}"' if register.group else ""
            yield f'    <reg name="{register.name}" bitsize="{register.nbits}" type="{register.type}"{group}/>'
        yield "  </feature>"
    yield "</target>"


def _type(name: str) -> Iterator[str]:
    """The definition of a type that gdb does not know by itself."""
    if name in _FLAGS:
        yield f'    <flags id="{name}" size="{4 if name in _HALF_SIZED else 8}">'
        for flag, bit in _FLAGS[name]:
            yield f'      <field name="{flag}" start="{bit}" end="{bit}"/>'
        yield "    </flags>"
    elif name == "vec128":
        for vector, element, count in _VECTORS:
            yield f'    <vector id="{vector}" type="{element}" count="{count}"/>'
        yield '    <union id="vec128">'
        for view, vector in _VIEWS:
            yield f'      <field name="{view}" type="{vector}"/>'
        yield "    </union>"
