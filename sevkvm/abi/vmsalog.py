"""VMSAs in a file: decrypted pages as they are, or what the kernel's log says of them.

Two places of KVM print one, and each is found by the line in front of it:

- LAUNCH_UPDATE_VMSA, with dynamic debug on: all bytes before they are encrypted, sixteen to a line, no offsets.
- ``kvm_amd.dump_invalid_vmcb=1``, Linux 6.16 or newer, a policy that allows debugging: the fields by their names, after
  a VMRUN that failed.

Sources: Linux arch/x86/kvm/svm/sev.c (sev_es_sync_vmsa), svm.c (dump_vmcb), lib/hexdump.c (v6.16). What stands in front
of a message (time, host, module) differs, and other messages may come in between.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from sevkvm.abi.vmsa import BYTES, DECODED_NBYTES, QUADS, SAVE_AREA_NBYTES, SEGMENTS, VmcbSegment, Vmsa
from sevkvm.abi.x86 import PAGE_NBYTES
from sevkvm.errors import BadGuestData

VMSAS_MAX: Final = 4096
# sizeof the struct that is printed: since Linux 5.19, and before
_DUMPED_NBYTES: Final = (SAVE_AREA_NBYTES, 1032)
_BYTES_FOLLOW: Final = "Virtual Machine Save Area (VMSA):"
_FIELDS_FOLLOW: Final = "VMCB State Save Area:"
_FIELDS_END: Final = "VMCB Control Area:"
_BYTES = re.compile(r"(?:^|[\s:])((?:[0-9a-f]{2} ){7,15}[0-9a-f]{2})\s*$")
_SEGMENT = re.compile(r"\b(\w+): +s: ([0-9a-f]{4}) a: ([0-9a-f]{4}) l: ([0-9a-f]{8}) b: ([0-9a-f]{16})\b")
_QUAD = re.compile(r"\b([a-z][a-z0-9_]*):? +([0-9a-f]{16})\b")
_BYTE = re.compile(r"\b(vmpl|cpl): +(\d+)\b")


def read_vmsas(data: bytes) -> list[Vmsa]:
    """Every VMSA of a file, in its order; BadGuestData if there is none, or one of them is not whole."""
    found = _pages(data) if b"\0" in data else _logged(data.decode(errors="replace").splitlines())
    if not found:
        raise BadGuestData(
            "no VMSA is in it",
            help=f"wanted: decrypted pages, or a kernel log with '{_FIELDS_FOLLOW}' (kvm_amd.dump_invalid_vmcb=1)",
        )
    if len(found) > VMSAS_MAX:
        raise BadGuestData(f"{len(found)} VMSAs are more than any guest has vCPUs")
    return found


def _pages(data: bytes) -> list[Vmsa]:
    """One VMSA, cut off behind its last field or not, or whole pages of one each."""
    if len(data) < PAGE_NBYTES:
        return [Vmsa.unpack(data)]
    if len(data) % PAGE_NBYTES:
        raise BadGuestData(f"{len(data)} bytes are no whole pages of VMSAs")
    return [Vmsa.unpack(data[at : at + PAGE_NBYTES]) for at in range(0, len(data), PAGE_NBYTES)]


def _logged(lines: list[str]) -> list[Vmsa]:
    found = []
    for kind, block in _blocks(lines):
        found.append(_from_bytes(block) if kind == _BYTES_FOLLOW else _from_fields(block))
    return found


def _blocks(lines: list[str]) -> Iterator[tuple[str, list[str]]]:
    """What follows each of the two lines, up to the next of them."""
    kind, block = "", list[str]()
    for line in lines:
        mark = next((each for each in (_BYTES_FOLLOW, _FIELDS_FOLLOW, _FIELDS_END) if each in line), None)
        if mark is None:
            block.append(line)
            continue
        if kind:
            yield kind, block
        kind, block = "" if mark == _FIELDS_END else mark, []
    if kind:
        yield kind, block


def _from_bytes(block: list[str]) -> Vmsa:
    data = b""
    for line in block:
        if len(data) < SAVE_AREA_NBYTES and (match := _BYTES.search(line)):
            data += bytes.fromhex(match[1])
    if len(data) not in _DUMPED_NBYTES:
        raise BadGuestData(
            f"the log has {len(data)} bytes of a VMSA, not {SAVE_AREA_NBYTES}: lines are missing",
            help="they have no offsets: which are missing cannot be known; a larger log_buf_len keeps more",
        )
    assert len(data) >= DECODED_NBYTES
    return Vmsa.unpack(data)


def _from_fields(block: list[str]) -> Vmsa:
    fields: dict[str, Any] = {}
    for line in block:
        if match := _SEGMENT.search(line):
            selector, attrib, limit, base = (int(word, 16) for word in match.groups()[1:])
            fields.setdefault(match[1], VmcbSegment(selector, attrib, limit, base))
            continue
        for name, value in _QUAD.findall(line):
            fields.setdefault(name, int(value, 16))
        for name, value in _BYTE.findall(line):
            fields.setdefault(name, int(value))
    missing = [name for name in (*SEGMENTS, *BYTES, *QUADS) if name not in fields]
    if missing:
        raise BadGuestData(
            f"the log's save area lacks {', '.join(missing[:8])}",
            help="kernels before Linux 6.16 do not print them; or a part of the log is lost",
        )
    return Vmsa(**{name: fields[name] for name in Vmsa._fields}).checked()
