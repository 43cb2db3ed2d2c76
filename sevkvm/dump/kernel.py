"""What a dump says of the guest's kernel, taken from its VMCOREINFO note and its ``init_uts_ns``."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from sevkvm import errors
from sevkvm.abi.kdump import Utsname
from sevkvm.linux.space import KernelSpace
from sevkvm.linux.tables import check

if TYPE_CHECKING:
    from sevkvm.dump.reader import DumpSource
    from sevkvm.linux.vmcoreinfo import VmcoreInfo


@dataclass(frozen=True)
class KernelFacts:
    """``vmcoreinfo``: the note's text, true of the file. The defaults are what is said of a guest that tells nothing.

    info: the note as it is in the guest. missing: why there is none, where it was looked for.
    phys_base: where the kernel's image is in physical memory, less what its link address says; may be negative.
    """

    vmcoreinfo: bytes = b""
    utsname: Utsname = field(default_factory=Utsname)
    phys_base: int = 0
    info: VmcoreInfo | None = None
    missing: str | None = None

    @property
    def osrelease(self) -> str | None:
        """The kernel's name, where the note is known."""
        return None if self.info is None else self.info.osrelease


def find_kernel_facts(guest: DumpSource) -> KernelFacts:
    """Search the guest's memory for what its kernel says of itself."""
    try:
        info = guest.vmcoreinfo()
    except (errors.BadGuestData, errors.PlatformUnsupported, errors.RegistersUnavailable) as reason:
        return KernelFacts(missing=reason.message)
    if info is None:
        return KernelFacts(missing="no Linux kernel's VMCOREINFO was found in the guest")
    cbit_pos = guest.sev.cbit_pos if guest.sev.encrypted else None
    try:
        # its own tables: a vCPU may be in a process that maps little of the kernel
        read = KernelSpace(guest.memory, check(guest.memory, info, cbit_pos)).read
    except errors.BadGuestData:
        read = _nothing  # an old kernel does not say where its tables are
    return replace(kernel_facts(info.text, read), info=info)


def _nothing(gva: int, nbytes: int) -> bytes:
    raise errors.MemoryFault("gva", gva)


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
