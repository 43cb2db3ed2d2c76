"""A symbol table for volatility3 (its "ISF"), made from a kernel's BTF and ``nm``: of Linux it comes with none.

Source: volatility3's schema-6.2.0.json; Linux Documentation/bpf/btf.rst. Shares no code with sevkvm.linux.btf.
"""

from __future__ import annotations

import base64
import json
import lzma
import struct
import subprocess
from pathlib import Path
from typing import Any

from elftools.elf.elffile import ELFFile

INT, PTR, ARRAY, STRUCT, UNION, ENUM, FWD, TYPEDEF = range(1, 9)
QUALIFIERS = (TYPEDEF, 9, 10, 11, 18)
FUNC, FUNC_PROTO, VAR, DATASEC, FLOAT, DECL_TAG, ENUM64 = 12, 13, 14, 15, 16, 17, 19
ENTRY_NBYTES = {STRUCT: 12, UNION: 12, ENUM: 8, FUNC_PROTO: 8, DATASEC: 12, ENUM64: 12}
FIXED_NBYTES = {INT: 4, ARRAY: 12, VAR: 4, DECL_TAG: 4}
POINTER = {"size": 8, "signed": False, "kind": "int", "endian": "little"}
VOID = {"size": 0, "signed": False, "kind": "void", "endian": "little"}
# The kernel's BTF tells only types, not which variable has which.
VARIABLES = {
    "init_task": "task_struct",
    "init_pid_ns": "pid_namespace",
    "init_mm": "mm_struct",
    "init_files": "files_struct",
    "init_uts_ns": "uts_namespace",
    "modules": "list_head",
}
POINTER_VARIABLES = {"prb": "printk_ringbuffer"}


def write_isf(vmlinux: Path, target: Path) -> None:
    """From a ``vmlinux`` with symbols to ``target``, an ``.xz`` file."""
    with vmlinux.open("rb") as file:
        elf = ELFFile(file)
        types = Types(elf.get_section_by_name(".BTF").data())
        table: dict[str, Any] = {
            "metadata": {"format": "6.2.0", "producer": {"name": "tests", "version": "1"}},
            "base_types": types.base,
            "user_types": types.user,
            "enums": types.enums,
            "symbols": symbols(vmlinux),
        }
        banner = table["symbols"]["linux_banner"]
        text = read_string(elf, banner["address"])
    char = {"kind": "base", "name": "char"}
    banner["type"] = {"kind": "array", "count": len(text), "subtype": char}
    banner["constant_data"] = base64.b64encode(text).decode()
    with lzma.open(target, "wt", preset=0) as out:
        json.dump(table, out)


def symbols(vmlinux: Path) -> dict[str, dict[str, Any]]:
    """Every symbol's address, the type of the few that are asked for by type."""
    nm = subprocess.run(["nm", vmlinux], capture_output=True, text=True, check=True, timeout=120).stdout
    found: dict[str, dict[str, Any]] = {}
    for line in nm.splitlines():
        address, _, name = line[:16], line[17:18], line[19:]
        if address.strip():
            found.setdefault(name, {"address": int(address, 16)})
    for name, struct_name in VARIABLES.items():
        found[name]["type"] = {"kind": "struct", "name": struct_name}
    for name, struct_name in POINTER_VARIABLES.items():
        found[name]["type"] = {"kind": "pointer", "subtype": {"kind": "struct", "name": struct_name}}
    return found


def read_string(elf: ELFFile, gva: int) -> bytes:
    """The bytes at an address up to and with the NUL."""
    for section in elf.iter_sections():
        if section["sh_addr"] <= gva < section["sh_addr"] + section["sh_size"]:
            data: bytes = section.data()[gva - section["sh_addr"] :]
            return data[: data.index(0) + 1]
    raise AssertionError(f"no section has {gva:#x}")


class Types:
    """BTF as ISF: ``base``, ``user`` and ``enums`` by name."""

    def __init__(self, data: bytes) -> None:
        (header_nbytes, type_at, types_nbytes, name_at, names_nbytes) = struct.unpack_from("<5I", data, 4)
        self._names = data[header_nbytes + name_at :][:names_nbytes]
        self._types = data[header_nbytes + type_at :][:types_nbytes]
        self.base: dict[str, Any] = {"pointer": POINTER, "void": VOID}
        self.user: dict[str, Any] = {}
        self.enums: dict[str, Any] = {}
        self._all: list[tuple[str, int, int, int, int]] = [("void", 0, 0, 0, 0)]
        at = 0
        while at < len(self._types):
            name, info, size = struct.unpack_from("<III", self._types, at)
            kind, count = info >> 24 & 31, info & 0xFFFF
            self._all.append((self._name(name), kind, info, size, at + 12))
            at += 12 + FIXED_NBYTES.get(kind, 0) + ENTRY_NBYTES.get(kind, 0) * count
        for number, (name, kind, info, size, body) in enumerate(self._all):
            if kind in (STRUCT, UNION):
                self.user.setdefault(self._tag(number), self._struct(kind, info, size, body))
            elif kind in (ENUM, ENUM64):
                self.enums.setdefault(self._tag(number), self._enum(kind, info, size, body))
            elif kind in (INT, FLOAT):
                self.base.setdefault(name, self._number(name, kind, size, body))

    def _name(self, at: int) -> str:
        return self._names[at : self._names.index(0, at)].decode()

    def _tag(self, number: int) -> str:
        return self._all[number][0] or f"unnamed_{number}"

    def _number(self, name: str, kind: int, size: int, body: int) -> dict[str, Any]:
        (encoding,) = struct.unpack_from("<I", self._types, body) if kind == INT else (0,)
        what = {"char": "char", "_Bool": "bool"}.get(name, "float" if kind == FLOAT else "int")
        return {"size": size, "signed": bool(encoding >> 24 & 1), "kind": what, "endian": "little"}

    def _enum(self, kind: int, info: int, size: int, body: int) -> dict[str, Any]:
        base = {1: "unsigned char", 2: "short unsigned int", 4: "unsigned int", 8: "long unsigned int"}[size]
        constants = {}
        for number in range(info & 0xFFFF):
            name, *words = struct.unpack_from(
                "<II" if kind == ENUM else "<III", self._types, body + number * ENTRY_NBYTES[kind]
            )
            constants[self._name(name)] = words[0] | (words[1] << 32 if len(words) > 1 else 0)
        return {"size": size, "base": base, "constants": constants}

    def _struct(self, kind: int, info: int, size: int, body: int) -> dict[str, Any]:
        fields = {}
        for number in range(info & 0xFFFF):
            name, type_id, offset = struct.unpack_from("<III", self._types, body + 12 * number)
            bits = offset >> 24 if info >> 31 else 0
            offset = offset & 0xFFFFFF if info >> 31 else offset
            described = self._type(type_id)
            if bits:  # the place of the integer that it is a part of
                unit = 8 * self._all[self._bare(type_id)][3]
                described = {
                    "kind": "bitfield",
                    "bit_position": offset % unit,
                    "bit_length": bits,
                    "type": described,
                }
                offset -= offset % unit
            field = {"type": described, "offset": offset // 8}
            if not self._name(name):
                field["anonymous"] = True
            fields[self._name(name) or f"unnamed_field_{number}"] = field
        return {"size": size, "fields": fields, "kind": "struct" if kind == STRUCT else "union"}

    def _bare(self, number: int) -> int:
        while self._all[number][1] in QUALIFIERS:
            number = self._all[number][3]
        return number

    def _type(self, number: int) -> dict[str, Any]:
        number = self._bare(number)
        name, kind, info, size, body = self._all[number]
        if kind == PTR:
            return {"kind": "pointer", "subtype": self._type(size)}
        if kind == ARRAY:
            element, _, count = struct.unpack_from("<III", self._types, body)
            return {"kind": "array", "count": count, "subtype": self._type(element)}
        if kind in (STRUCT, UNION):
            return {"kind": "struct" if kind == STRUCT else "union", "name": self._tag(number)}
        if kind == FWD:
            return {"kind": "union" if info >> 31 else "struct", "name": name}
        if kind in (ENUM, ENUM64):
            return {"kind": "enum", "name": self._tag(number)}
        if kind in (FUNC, FUNC_PROTO):
            return {"kind": "function"}
        return {"kind": "base", "name": name}
