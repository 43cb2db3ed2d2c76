"""What a guest's processor claims to be: KVM's offer, with the encryption leaf of a SEV guest.

Source: AMD64 Architecture Programmer's Manual, volume 3, appendix E (CPUID Fn0000_0001, Fn8000_0008, Fn8000_001F).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

from sevkvm import errors, native
from sevkvm.abi import kvm, sev
from sevkvm.lab.ioctl import ioctl, open_kvm

_ROOM: Final = 256
_LEAF_FEATURES, _LEAF_STRUCTURED, _LEAF_TOPOLOGY = 1, 7, 0xB
_LEAF_EXTENDED_MAX, _LEAF_ADDRESS_SIZES = 0x8000_0000, 0x8000_0008
_ECX1_PCID: Final = 1 << 17
_ECX7_LA57: Final = 1 << 16
_REDUCED_PHYS_BITS: Final = 1  # what QEMU users configure; the guest only needs it to be plausible


def supported(kvm_fd: int) -> list[kvm.CpuidEntry]:
    """KVM_GET_SUPPORTED_CPUID."""
    data = bytearray(kvm.pack_cpuid2([], room=_ROOM))
    ioctl(kvm_fd, kvm.KVM_GET_SUPPORTED_CPUID, data)
    return kvm.unpack_cpuid2(data)


def _find(entries: list[kvm.CpuidEntry], function: int) -> kvm.CpuidEntry:
    for entry in entries:
        if entry.function == function and entry.index == 0:
            return entry
    return kvm.CpuidEntry(function, 0, 0, 0, 0, 0, 0)


def has_pcid(entries: list[kvm.CpuidEntry]) -> bool:
    """May a guest set CR4.PCIDE?"""
    return bool(_find(entries, _LEAF_FEATURES).ecx & _ECX1_PCID)


def has_la57(entries: list[kvm.CpuidEntry]) -> bool:
    """May a guest set CR4.LA57, 5-level paging?"""
    return bool(_find(entries, _LEAF_STRUCTURED).ecx & _ECX7_LA57)


def cbit_position(entries: list[kvm.CpuidEntry]) -> int:
    """Where this host has the C-bit: KVM says, or the processor; PlatformUnsupported if neither does."""
    leaf = _find(entries, sev.CPUID_LEAF)
    for eax, ebx in ((leaf.eax, leaf.ebx), native.cpuid(sev.CPUID_LEAF)[:2]):
        if eax & sev.CPUID_EAX_SEV and ebx & sev.CPUID_EBX_CBIT_MASK:
            return ebx & sev.CPUID_EBX_CBIT_MASK
    raise errors.PlatformUnsupported(
        "neither KVM nor the processor says where the C-bit is",
        help="say it: --cbit-pos 51 (Milan and later) or 47 (Naples, Rome)",
    )


def host_cbit_position() -> int:
    """:func:`cbit_position` of this host's /dev/kvm."""
    kvm_fd = open_kvm()
    try:
        return cbit_position(supported(kvm_fd))
    finally:
        os.close(kvm_fd)


@dataclass(frozen=True)
class GuestCpu:
    """What to tell the guest. ``cbit_pos`` None: nothing about encryption."""

    cbit_pos: int | None
    es: bool = False

    def entries(self, offered: list[kvm.CpuidEntry], vcpu: int) -> list[kvm.CpuidEntry]:
        """KVM's offer for one vCPU: its APIC id, and for a SEV guest the leaves that know of the C-bit.

        Physical addresses must be wide enough for the C-bit, or KVM refuses a CR3 that has it.
        """
        entries = [_with_apic_id(entry, vcpu) for entry in offered]
        if self.cbit_pos is None:
            return entries
        top, sizes = _find(offered, _LEAF_EXTENDED_MAX), _find(offered, _LEAF_ADDRESS_SIZES)
        width = max(sizes.eax & 0xFF, self.cbit_pos + 1)
        own = [
            top._replace(eax=max(top.eax, sev.CPUID_LEAF)),
            sizes._replace(eax=sizes.eax & ~0xFF | width),
            kvm.CpuidEntry(
                sev.CPUID_LEAF,
                index=0,
                flags=0,
                eax=sev.CPUID_EAX_SEV | (sev.CPUID_EAX_SEV_ES if self.es else 0),
                ebx=self.cbit_pos | _REDUCED_PHYS_BITS << 6,
                ecx=0,
                edx=0,
            ),
        ]
        replaced = {entry.function for entry in own}
        return [entry for entry in entries if entry.function not in replaced] + own


def _with_apic_id(entry: kvm.CpuidEntry, vcpu: int) -> kvm.CpuidEntry:
    if entry.function == _LEAF_FEATURES:
        return entry._replace(ebx=entry.ebx & 0x00FF_FFFF | vcpu << 24)
    if entry.function == _LEAF_TOPOLOGY:
        return entry._replace(edx=vcpu)
    return entry
