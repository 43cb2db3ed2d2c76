"""Memory slots in the layout of QEMU's ``info mtree``, for programs that read it: RAM and ROM, no devices."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sevkvm.memory.source import Slot, SlotMap


def flat_view(slots: SlotMap) -> Iterator[str]:
    """``info mtree -f``: one view, that of memory."""
    yield 'FlatView #0\n AS "memory", root: system\n Root memory region: system\n'
    for slot, offset in _placed(slots):
        yield f"  {_line(slot, offset)} KVM\n"
    yield "\n"


def tree(slots: SlotMap) -> Iterator[str]:
    """``info mtree``: one address space."""
    yield "address-space: memory\n  0000000000000000-ffffffffffffffff (prio 0, i/o): system\n"
    for slot, offset in _placed(slots):
        yield f"    {_line(slot, offset)}\n"
    yield "\n"


def _line(slot: Slot, offset: int) -> str:
    kind = "rom" if slot.readonly else "ram"
    where = f" @{offset:016x}" if offset else ""
    return f"{slot.gpa:016x}-{slot.end - 1:016x} (prio 0, {kind}): {slot.name or 'ram'}{where}"


def _placed(slots: SlotMap) -> Iterator[tuple[Slot, int]]:
    """Each with its offset in the block of its name, which begins where the block's lowest part is."""
    starts: dict[str, int] = {}
    for slot in slots:
        starts[slot.name] = min(slot.hva, starts.get(slot.name, slot.hva))
    for slot in slots:
        yield slot, slot.hva - starts[slot.name] if slots.in_vmm else 0
