"""Names beside addresses, as gdb and objdump write them: in the lines of ``x``, behind what instructions refer to."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

Labels = Callable[[int], "str | None"]
"""The name of a virtual address, with how far it is into it; None where it has none."""

_MASK: Final = (1 << 64) - 1
_BRANCHES: Final = ("call", "j", "loop", "xbegin")
_TARGET: Final = re.compile(r"(0x[0-9a-f]{1,16}|[0-9]{1,20})")
# what per-CPU data refers to is not where %rip says
_RELATIVE: Final = re.compile(r"(?<![:\w])(-?)(0x[0-9a-f]{1,16}|[0-9]{1,20})?\(%rip\)")


def beside(labels: Labels | None, gva: int) -> str:
    """`` <do_idle+0x17>``, or nothing."""
    label = labels(gva) if labels is not None else None
    return "" if label is None else f" <{label}>"


def referred(labels: Labels | None, mnemonic: str, operands: str, following: int) -> str:
    """What stands behind the operands (AT&T) of an instruction before ``following``: where it branches, or its data."""
    if labels is None:
        return ""
    target = _TARGET.fullmatch(operands) if mnemonic.startswith(_BRANCHES) else None
    if target is not None:
        return beside(labels, int(target[1], 0) & _MASK)
    relative = _RELATIVE.search(operands)
    if relative is None:
        return ""
    offset = int(relative[2] or "0", 0)
    gva = (following + (-offset if relative[1] else offset)) & _MASK
    label = beside(labels, gva)
    return f"  # 0x{gva:x}{label}" if label else ""
