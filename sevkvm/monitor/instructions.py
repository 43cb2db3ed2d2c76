"""``x /i``: machine code as instructions, laid out as QEMU's monitor does; capstone (an extra) decodes them.

The spelling of an operand is that of the capstone that is installed: QEMU's own copy may be another version. Where the
memory after an instruction cannot be read, QEMU gives up up to 31 bytes early; here every whole instruction is shown.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from sevkvm.abi import x86
from sevkvm.abi.x86 import PAGE_NBYTES
from sevkvm.monitor.labels import beside, referred
from sevkvm.monitor.problem import CommandProblem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sevkvm.monitor.examine import Reader
    from sevkvm.monitor.labels import Labels
    from sevkvm.monitor.monitor import Monitor

_LONGEST: Final = 15  # bytes of an x86 instruction
_AHEAD_NBYTES: Final = 512
_LINE_NBYTES: Final = 8
# capstone 5 spells -1 to -9 of 64 bits without their sign; 4, which QEMU 7.2 uses, did not
_UNSIGNED: Final = re.compile(r"\$(1844674407370955160[7-9]|1844674407370955161[0-5])\b")


def disassemble(
    monitor: Monitor, reader: Reader, count: int, address: int, labels: Labels | None = None
) -> Iterator[str]:
    """``count`` instructions, at least one; bytes that are none are shown as ``.byte``. ``labels``: names for them."""
    decoder = _decoder(monitor)
    buffer, at = b"", address
    for _ in range(max(count, 1)):
        if len(buffer) < _LONGEST:
            buffer += _read(reader, at + len(buffer), _AHEAD_NBYTES)
        found = next(decoder.disasm_lite(buffer, at, 1), None)
        if found is None:
            monitor.hole()
            yield f"0x{at:08x}: unable to read memory\n"
            return
        _, nbytes, mnemonic, operands = found
        yield from _lines(at, buffer[:nbytes], mnemonic, operands, labels)
        buffer, at = buffer[nbytes:], at + nbytes


def _read(reader: Reader, address: int, nbytes: int) -> bytes:
    """As much as there is, page by page."""
    data = b""
    while nbytes and address < 1 << 64:
        want = min(nbytes, PAGE_NBYTES - address % PAGE_NBYTES)
        got = reader(address, want)
        data += got
        if len(got) < want:
            break
        address, nbytes = address + want, nbytes - want
    return data


def _lines(at: int, code: bytes, mnemonic: str, operands: str, labels: Labels | None = None) -> Iterator[str]:
    head = code[:_LINE_NBYTES].hex(" ")
    operands = _UNSIGNED.sub(lambda found: f"${int(found[1]) - (1 << 64)}", operands)
    name, behind = beside(labels, at), referred(labels, mnemonic, operands, at + len(code))
    yield f"0x{at:08x}{name}:  {head:<{3 * _LINE_NBYTES}} {mnemonic:<8} {operands}{behind}\n"
    for offset in range(_LINE_NBYTES, len(code), _LINE_NBYTES):
        yield f"0x{at + offset:08x}:  {code[offset : offset + _LINE_NBYTES].hex(' ')}\n"


def _decoder(monitor: Monitor) -> Any:
    try:
        import capstone
    except ImportError:
        raise CommandProblem("format i (instructions) needs capstone: pip install 'sevkvm[disasm]'") from None
    decoder = capstone.Cs(capstone.CS_ARCH_X86, _mode(monitor, capstone))
    decoder.syntax = capstone.CS_OPT_SYNTAX_ATT
    decoder.skipdata = True  # what is no instruction: one byte of data
    return decoder


def _mode(monitor: Monitor, capstone: Any) -> int:
    """What the current vCPU's code segment says; 64-bit code where registers are not known."""
    from sevkvm.errors import RegistersUnavailable

    try:
        sregs = monitor.state().sregs
    except RegistersUnavailable:
        return int(capstone.CS_MODE_64)
    if sregs.efer & x86.EFER_LMA and sregs.cs.l:
        return int(capstone.CS_MODE_64)
    return int(capstone.CS_MODE_32 if sregs.cs.db else capstone.CS_MODE_16)
