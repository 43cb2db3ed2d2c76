"""``sevkvm regs --vmsa``: registers out of VMSAs that somebody has from elsewhere."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

from sevkvm.abi.vmsalog import read_vmsas
from sevkvm.errors import BadDump, BadGuestData, UsageError
from sevkvm.memory.policy import SevInfo, SevKind
from sevkvm.vcpu import VcpuState

if TYPE_CHECKING:
    from sevkvm.cli.options import GuestSession

_NBYTES_MAX: Final = 64 << 20
_OF_A_GUEST: Final = ("pid", "vm_fd", "qmp", "libvirt", "cr3", "paging")
_UNTOLD: Final = frozenset({"cr8", "apic_base"})


def registers(path: str, session: GuestSession) -> tuple[list[VcpuState], SevInfo]:
    """Of every VMSA in the file, numbered in its order, and what is known of the guest: --cbit-pos alone."""
    given: dict[str, Any] = session.arguments | {"file": session.file}
    named = [name for name in (*_OF_A_GUEST, "file") if given[name] is not None]
    if named or session.arguments["slots"]:
        raise UsageError(
            f"--vmsa is all that is read: no --{(named or ['slot'])[0].replace('_', '-')} with it"
        )
    try:
        vmsas = read_vmsas(_content(path))
    except BadGuestData as error:
        raise BadDump(path, str(error), help=error.help) from error
    states = [
        VcpuState(index, vmsa.regs(), vmsa.sregs(), vmsa.kernel_gs_base, _UNTOLD)
        for index, vmsa in enumerate(vmsas)
    ]
    return states, SevInfo(SevKind.SEV_ES, cbit_pos=session.arguments["cbit_pos"])


def _content(path: str) -> bytes:
    """The file, or standard input for "-"; a log that is larger than any kernel's is refused."""
    with sys.stdin.buffer if path == "-" else open(path, "rb") as file:
        data = file.read(_NBYTES_MAX + 1)
    if len(data) > _NBYTES_MAX:
        raise BadDump(path, f"more than {_NBYTES_MAX >> 20} MiB: no log of a kernel is so large")
    return data
