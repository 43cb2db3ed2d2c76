"""Where the C-bit is in a dump: its bytes are plaintext, but the entries of the page tables keep the bit."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from sevkvm import errors
from sevkvm.abi.x86 import CR3_ADDRESS_MASK
from sevkvm.linux import sweep
from sevkvm.linux.ram import Search
from sevkvm.memory.policy import SevInfo, SevKind
from sevkvm.vcpu import plausible_cbit

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sevkvm.abi.corenotes import CpuRegisters
    from sevkvm.attach.options import Warn
    from sevkvm.dumpfile import DumpContents
    from sevkvm.memory.source import PhysicalMemory, SlotMap

_PLAIN: Final = SevInfo(SevKind.NONE)
_SME_MASK: Final = re.compile(rb"^NUMBER\(sme_mask\)=([0-9]{1,20})$", re.MULTILINE)


def file_cbit(contents: DumpContents, slots: SlotMap, told: int | None) -> SevInfo:
    """What the dump says of encryption; ``told`` is the user's word.

    In this order: the user, the VMCOREINFO's sme_mask, segments shown twice, a CR3 that leads to RAM only without one
    bit. A dump where none of them tells a C-bit is one of a plain guest, or its page tables were stripped of it.
    """
    if told is not None:
        return SevInfo(SevKind.SEV, cbit_pos=told, cbit_source="option")
    mask = _sme_mask(contents)
    if mask is not None:
        return (
            SevInfo(SevKind.SEV, cbit_pos=mask.bit_length() - 1, cbit_source="vmcoreinfo") if mask else _PLAIN
        )
    if contents.alias_bit is not None:
        return SevInfo(SevKind.SEV, cbit_pos=contents.alias_bit, cbit_source="alias")
    position = _stray_bit(contents.cpus, slots)
    return _PLAIN if position is None else SevInfo(SevKind.SEV, cbit_pos=position, cbit_source="cr3")


def _sme_mask(contents: DumpContents) -> int | None:
    """The VMCOREINFO's sme_mask; None where it has none."""
    match = _SME_MASK.search(contents.vmcoreinfo or b"")
    if match is None:
        return None
    mask = int(match[1])
    if mask and (mask.bit_count() != 1 or plausible_cbit(mask.bit_length() - 1) is None):
        raise errors.BadGuestData(
            f"the dump's VMCOREINFO has an sme_mask of 0x{mask:x}, which is no C-bit",
            help="say the C-bit's position with --cbit-pos",
        )
    return mask


def searched_cbit(memory: PhysicalMemory, limit_pages: int, warn: Warn) -> SevInfo:
    """What a Linux in the dump's memory says, by the first VMCOREINFO there; what it says of its tables is not checked.

    For files that have neither registers nor notes. Reads up to ``limit_pages``.
    """
    for notes in sweep.notes(Search(memory, None, limit_pages)):
        masks = {info.sme_mask for info in notes}
        mask = masks.pop() or 0
        position = plausible_cbit(mask.bit_length() - 1)
        if masks or mask.bit_count() != 1 or position is None:
            return _PLAIN
        warn(f"the C-bit is bit {position}, says the VMCOREINFO at gpa 0x{notes[0].gpa:x}")
        return SevInfo(SevKind.SEV, cbit_pos=position, cbit_source="vmcoreinfo")
    return _PLAIN


def stripped_bit(contents: DumpContents, info: SevInfo, slots: SlotMap) -> int:
    """The bit that page tables were stripped of and the vCPUs' CR3 were not, as a mask; 0 where there is none."""
    position = None if info.encrypted else _stray_bit(contents.cpus, slots)
    return 0 if position is None else 1 << position


def _stray_bit(cpus: Iterable[CpuRegisters], slots: SlotMap) -> int | None:
    """The bit without which every CR3 that leads outside RAM leads into it; None where there is no such bit."""
    bits = set()
    for cpu in cpus:
        root = cpu.sregs.cr3 & CR3_ADDRESS_MASK
        if slots.find(root) is not None:
            continue
        found = [
            bit for bit in range(32, 52) if root >> bit & 1 and slots.find(root & ~(1 << bit)) is not None
        ]
        bits.add(found[0] if len(found) == 1 else None)
    return bits.pop() if len(bits) == 1 else None
