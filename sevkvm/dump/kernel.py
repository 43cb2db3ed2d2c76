"""What a dump says of the guest's kernel, taken from its VMCOREINFO note and its ``init_uts_ns``."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from sevkvm import errors
from sevkvm.abi.kdump import Utsname


@dataclass(frozen=True)
class KernelFacts:
    """``vmcoreinfo``: the note's text. The defaults are what is said of a guest that tells nothing.

    phys_base: where the kernel's image is in physical memory, less what its link address says; may be negative.
    """

    vmcoreinfo: bytes = b""
    utsname: Utsname = field(default_factory=Utsname)
    phys_base: int = 0


def kernel_facts(text: str, read_virtual: Callable[[int, int], bytes]) -> KernelFacts:
    """From the note's text; ``read_virtual(gva, nbytes)`` reads the guest, and may raise MemoryFault.

    A system name that cannot be read is made of what the note says: readers refuse a dump without one.
    """
    values = dict(line.partition("=")[::2] for line in text.splitlines())
    number = values.get("NUMBER(phys_base)", "")
    phys_base = int(number) if re.fullmatch(r"-?[0-9]{1,20}", number) else 0
    release = values.get("OSRELEASE", "")
    utsname = _read_utsname(values, read_virtual)
    if utsname is None or utsname.release != release:
        utsname = Utsname(sysname="Linux", release=release)
    return KernelFacts(text.encode("ascii", "replace"), utsname, phys_base)


def _read_utsname(values: dict[str, str], read_virtual: Callable[[int, int], bytes]) -> Utsname | None:
    """``init_uts_ns.name``, if the note says where it is and it can be read."""
    symbol = values.get("SYMBOL(init_uts_ns)", "")
    offset = values.get("OFFSET(uts_namespace.name)", "")
    if not re.fullmatch(r"[0-9a-f]{1,16}", symbol) or not re.fullmatch(r"[0-9]{1,4}", offset):
        return None
    try:
        return Utsname.unpack(read_virtual(int(symbol, 16) + int(offset), Utsname.NBYTES))
    except errors.SevKvmError:
        return None
