"""The VMCOREINFO note in a Linux guest's RAM: find it, and say there that memory is encrypted.

Source: Linux kernel/crash_core.c and Documentation/admin-guide/kdump/vmcoreinfo.rst (v6.1).
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import Final

from sevkvm.abi.x86 import PAGE_NBYTES

_NAME: Final = b"VMCOREINFO\0"
_HEADER: Final = struct.Struct("<III12s")  # namesz, descsz, type, the name padded to a multiple of 4
_TEXT_NBYTES_MAX: Final = PAGE_NBYTES


@dataclass(frozen=True)
class VmcoreInfo:
    """The note at ``gpa``, ``nbytes`` long with its header, and the text in it."""

    gpa: int
    text: str

    @property
    def nbytes(self) -> int:
        """Header and text, padded to a multiple of 4."""
        return _HEADER.size + -(-len(self.text) // 4) * 4


def find_vmcoreinfo(ram: memoryview) -> VmcoreInfo | None:
    """The first note of that name; the kernel keeps it at the start of a page. None if there is none."""
    start = struct.pack("<I", len(_NAME))
    for gpa in range(0, len(ram) - PAGE_NBYTES, PAGE_NBYTES):
        if ram[gpa : gpa + 4] != start:
            continue
        namesz, descsz, kind, name = _HEADER.unpack_from(ram, gpa)
        if name[:namesz] != _NAME or kind != 0 or not 0 < descsz <= _TEXT_NBYTES_MAX:
            continue
        text = bytes(ram[gpa + _HEADER.size : gpa + _HEADER.size + descsz])
        if text.startswith(b"OSRELEASE=") and text.isascii():
            return VmcoreInfo(gpa, text.decode("ascii"))
    return None


def set_sme_mask(ram: memoryview, note: VmcoreInfo, cbit_pos: int) -> VmcoreInfo:
    """Rewrite the note with ``NUMBER(sme_mask)`` as a SEV guest's kernel has it; returns the new one."""
    line = f"NUMBER(sme_mask)={1 << cbit_pos}\n"
    text, found = re.subn(r"^NUMBER\(sme_mask\)=.*\n", line, note.text, flags=re.MULTILINE)
    if not found:
        text += line
    new = VmcoreInfo(note.gpa, text)
    if len(text) > _TEXT_NBYTES_MAX:
        raise ValueError("no room in the VMCOREINFO note")
    room = max(note.nbytes, new.nbytes)
    data = _HEADER.pack(len(_NAME), len(text), 0, _NAME) + text.encode()
    # An empty note, which ends the list, follows within the kernel's buffer.
    ram[note.gpa : note.gpa + room + 12] = data.ljust(room + 12, b"\0")
    return new
