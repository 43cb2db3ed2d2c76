"""CPUID Fn8000_001F as KVM_GET_SUPPORTED_CPUID shows it on a SEV host.

Sources: AMD64 APM volume 3, appendix E; Linux arch/x86/kvm/cpuid.c (v6.18), which takes away what the guest is
not to see: the number of VMPLs and the reduction of the physical address (EBX[31:12] and [11:6] are 0).
"""

from __future__ import annotations

from typing import Final

from sevkvm import native
from sevkvm.abi.kvm import CpuidEntry
from sevkvm.abi.sev import CPUID_EAX_SEV, CPUID_EAX_SEV_ES, CPUID_LEAF
from sevkvm.shim.firmware import MAX_ASID, MIN_SEV_ASID

DEFAULT_CBIT_POS: Final = 51
_MAX_EXTENDED_LEAF: Final = 0x80000000
_PLAIN_LEAVES: Final = (0, 1, _MAX_EXTENDED_LEAF, 0x80000001, 0x80000008)


def sev_leaf(cbit_pos: int) -> CpuidEntry:
    """Leaf 8000_001F: SEV and SEV-ES, the C-bit's position, how many guests."""
    eax = CPUID_EAX_SEV | CPUID_EAX_SEV_ES
    return CpuidEntry(CPUID_LEAF, 0, 0, eax, cbit_pos, MAX_ASID, MIN_SEV_ASID)


def with_sev(entries: list[CpuidEntry], cbit_pos: int) -> list[CpuidEntry]:
    """The entries with SEV: leaf 8000_001F replaced or added, the highest extended leaf raised to cover it."""
    result = [entry for entry in entries if entry.function != CPUID_LEAF]
    for place, entry in enumerate(result):
        if entry.function == _MAX_EXTENDED_LEAF and entry.eax < CPUID_LEAF:
            result[place] = CpuidEntry(
                entry.function, entry.index, entry.flags, CPUID_LEAF, entry.ebx, entry.ecx, entry.edx
            )
    return [*result, sev_leaf(cbit_pos)]


def supported_cpuid(cbit_pos: int) -> list[CpuidEntry]:
    """A short KVM_GET_SUPPORTED_CPUID answer made from this processor, with SEV."""
    return with_sev([CpuidEntry(leaf, 0, 0, *native.cpuid(leaf)) for leaf in _PLAIN_LEAVES], cbit_pos)
