"""What a walk found, in words: where a page lies in the VMM, why an address is not mapped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sevkvm.abi import x86
from sevkvm.cli.render import hexadecimal
from sevkvm.paging.entries import leads_to, reserved_bits
from sevkvm.paging.translation import NON_CANONICAL, NOT_PRESENT, RESERVED_BIT, TABLE_UNREADABLE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sevkvm.memory.source import SlotMap
    from sevkvm.paging.form import PagingForm
    from sevkvm.paging.translation import Translation

_NO_RAM = "no RAM is there (MMIO or a hole)"
_NOT_IN_DUMP = "the dump does not hold it"


def entry_digits(form: PagingForm) -> int:
    """Hexadecimal digits of an entry as stored: 8 in the 32-bit modes, else 16."""
    return 8 if form.levels == 2 else 16


def details(answer: Translation, form: PagingForm, slots: SlotMap) -> Iterator[str]:
    """Lines that follow the answer's first, if there is more to say."""
    if answer.gpa is None:
        yield _why(answer, form, slots)
        return
    slot = slots.find(answer.gpa)
    if slot is None:
        yield _NO_RAM if slots.in_vmm else _NOT_IN_DUMP
    elif slots.in_vmm:
        kind = "read-only slot" if slot.readonly else "RAM slot"
        name = f" ({slot.name})" if slot.name else ""
        hva = slot.hva + answer.gpa - slot.gpa
        yield f"hva 0x{hva:x} in the VMM, {kind} 0x{slot.gpa:x}:0x{slot.end:x}{name}"


def _why(answer: Translation, form: PagingForm, slots: SlotMap) -> str:
    if answer.fault == NON_CANONICAL:
        if form.levels < 4:
            return "above 4 GiB there is no linear address in this paging mode"
        top = x86.PAGE_SHIFT + 9 * form.levels - 1
        return f"bits 63 to {top} are not all equal, as {form.levels}-level paging needs them"
    if not answer.steps:
        return f"the top table, at gpa 0x{form.root_gpa:x}, cannot be read: {_missing(form.root_gpa, slots)}"
    step = answer.steps[-1]
    entry = f"the entry, in the table at gpa 0x{step.table_gpa:x},"
    if answer.fault == NOT_PRESENT:
        if not step.entry:
            return f"{entry} is empty"
        return f"{entry} has its Present bit (0) clear; the other bits are the guest's own"
    if answer.fault == RESERVED_BIT:
        bits = _bits(reserved_bits(form, step.level, step.entry))
        return f"{entry} has reserved bits set ({bits}): the processor faults on it"
    table = leads_to(form, step.level, step.entry)
    return f"{entry} leads to a table at gpa 0x{table:x} that cannot be read: {_missing(table, slots)}"


def _missing(gpa: int, slots: SlotMap) -> str:
    if not slots.in_vmm:
        return _NOT_IN_DUMP
    return _NO_RAM if slots.find(gpa) is None else "the page of RAM there is not readable"


def _bits(mask: int) -> str:
    """Bits by number, neighbours together: ``13-14, 29``."""
    runs: list[tuple[int, int]] = []
    for bit in (bit for bit in range(64) if mask >> bit & 1):
        if runs and runs[-1][1] == bit - 1:
            runs[-1] = (runs[-1][0], bit)
        else:
            runs.append((bit, bit))
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in runs)


def whereabouts(answer: Translation, form: PagingForm, slots: SlotMap) -> dict[str, Any]:
    """The keys of ``--json`` that :func:`details` puts into words; null where they do not apply."""
    slot = None if answer.gpa is None else slots.find(answer.gpa)
    last = answer.steps[-1] if answer.steps and answer.gpa is None else None
    unreadable = None
    if answer.fault == TABLE_UNREADABLE:
        unreadable = leads_to(form, last.level, last.entry) if last else form.root_gpa
    refused = reserved_bits(form, last.level, last.entry) if last and answer.fault == RESERVED_BIT else None
    return {
        "slot": None
        if slot is None
        else {
            "gpa": hexadecimal(slot.gpa),
            "size": slot.nbytes,
            "hva": hexadecimal(slots.hva(slot.gpa)),
            "name": slot.name,
            "readonly": slot.readonly,
        },
        "hva": None if answer.gpa is None else hexadecimal(slots.hva(answer.gpa)),
        "table_gpa": hexadecimal(last.table_gpa) if last else None,
        "reserved_bits": hexadecimal(refused),
        "unreadable_gpa": hexadecimal(unreadable),
    }
