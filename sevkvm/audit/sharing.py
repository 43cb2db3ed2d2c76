"""Rules about the C-bit: which guest-physical memory is mapped private, shared, or both, and what lies there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

from sevkvm.abi.x86 import PAGE_NBYTES
from sevkvm.audit import locate
from sevkvm.audit.rules import (
    CONFLICT,
    DIRECT_MAP_SHARED,
    IMAGE_SHARED,
    PRIVATE_MMIO,
    SWIOTLB_PRIVATE,
    TABLE_SHARED,
    Rule,
    Severity,
)
from sevkvm.audit.sharedram import SharedRam, amount, tell_direct_map
from sevkvm.pages.ranges import sweep

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sevkvm.audit.scene import Scene

RANGES_MAX: Final = 4096  # of one rule that are looked for in virtual memory
_RAM, _PRIVATE, _SHARED, _TABLE, _TEXT, _RODATA, _SWIOTLB, _ROM = 1, 2, 4, 8, 16, 32, 64, 128
_BOTH: Final = _PRIVATE | _SHARED
_IMAGE: Final = _TEXT | _RODATA


class Draft(NamedTuple):
    """A finding before it is known where it is mapped; ``private``: the mapping that is meant."""

    rule: Rule
    gpa: int
    end: int
    private: bool
    what: str


def examine(scene: Scene) -> None:
    """Every rule that asks the C-bit; ``scene.image`` and ``scene.direct_shared`` are known."""
    if scene.mapped is None:
        return
    drafts: dict[Rule, list[Draft]] = {}
    shared = SharedRam()
    for gpa, end, mask in sweep(_layers(scene)):
        if mask & _SHARED and mask & (_RAM | _ROM) == _RAM:
            shared.add(gpa, end)
        for draft in _drafts(gpa, end, mask):
            found = drafts.setdefault(draft.rule, [])
            if found and found[-1].end == gpa and found[-1].what == draft.what:
                found[-1] = found[-1]._replace(end=end)
            elif len(found) < RANGES_MAX:
                found.append(draft)
            else:
                scene.findings.cut(f"{draft.rule.id}: more than {RANGES_MAX} ranges")
    _tell(scene, [draft for each in drafts.values() for draft in each if scene.findings.wants(draft.rule)])
    shared.tell(scene)
    if scene.findings.wants(DIRECT_MAP_SHARED):
        tell_direct_map(scene)


def _layers(scene: Scene) -> Iterator[tuple[int, Iterable[tuple[int, int]]]]:
    assert scene.mapped is not None
    yield _RAM, ((slot.gpa, slot.end) for slot in scene.slots)
    yield _ROM, ((slot.gpa, slot.end) for slot in scene.slots if slot.readonly)
    yield _PRIVATE, scene.mapped.ranges(True)
    yield _SHARED, scene.mapped.ranges(False)
    yield _TABLE, ((gpa, gpa + PAGE_NBYTES) for gpa in scene.mapped.table_gpas)
    for bit, executable in ((_TEXT, True), (_RODATA, False)):
        parts = ((part.gpa, part.end) for part in scene.image if part.executable == executable)
        yield bit, _merged(sorted(parts))
    if scene.swiotlb is not None:
        yield _SWIOTLB, ((scene.swiotlb.gpa, scene.swiotlb.end),)


def _merged(ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Sorted ranges without overlap: modules and the image may lead to the same page."""
    start = end = 0
    for first, last in ranges:
        if first > end:
            if end > start:
                yield start, end
            start = first
        end = max(end, last)
    if end > start:
        yield start, end


def _drafts(gpa: int, end: int, mask: int) -> Iterator[Draft]:
    if mask & _PRIVATE and not mask & _RAM:
        yield Draft(PRIVATE_MMIO, gpa, end, True, "gpas that are no RAM are mapped private")
    if mask & _SWIOTLB and mask & _RAM and not mask & _SHARED:
        yield Draft(SWIOTLB_PRIVATE, gpa, end, True, "memory of the swiotlb is not shared")
    if not mask & _SHARED:
        return
    if mask & _TABLE:
        yield Draft(TABLE_SHARED, gpa, end, False, "page tables are mapped shared")
    if mask & _IMAGE:
        what = "kernel text is" if mask & _TEXT else "the kernel's read-only data are"
        yield Draft(IMAGE_SHARED, gpa, end, False, f"{what} mapped shared")
    if mask & _BOTH == _BOTH and mask & _RAM and not mask & (_TABLE | _IMAGE):
        yield Draft(CONFLICT, gpa, end, False, "mapped both private and shared")


def _tell(scene: Scene, drafts: list[Draft]) -> None:
    """Find out where each draft is mapped, and tell it."""
    asked = {}
    for draft in drafts:
        direct = locate.in_direct_map(scene, locate.Wanted(draft.gpa, draft.end, draft.private))
        also = locate.in_direct_map(scene, _opposite(draft)) if draft.rule is CONFLICT else None
        asked[draft] = direct, also
    wanted = [
        locate.Wanted(draft.gpa, draft.end, draft.private)
        for draft, (direct, _) in asked.items()
        if direct is None or draft.rule is PRIVATE_MMIO
    ]
    wanted += [
        _opposite(draft) for draft, (_, also) in asked.items() if draft.rule is CONFLICT and also is None
    ]
    found = locate.elsewhere(scene, list(dict.fromkeys(wanted))) if wanted else {}
    for draft, (direct, also) in asked.items():
        other = found.get(locate.Wanted(draft.gpa, draft.end, draft.private))
        counterpart = also or (found.get(_opposite(draft)) if draft.rule is CONFLICT else None)
        what, severity = draft.what, draft.rule.severity
        if draft.rule is PRIVATE_MMIO and direct is not None and other is None:
            # Linux maps the hole below 1 MiB with the RAM around it, and does not touch it there
            what, severity = f"{what}, by the direct map alone", Severity.NOTE
        if scene.findings.counted(draft.rule, severity):
            places = [place for place in (direct, other, counterpart) if place is not None]
            told = f"gpa 0x{draft.gpa:x} to 0x{draft.end:x}, {amount(draft.end - draft.gpa)}: {what}"
            scene.findings.add(draft.rule, told, *places, severity=severity)


def _opposite(draft: Draft) -> locate.Wanted:
    return locate.Wanted(draft.gpa, draft.end, not draft.private)
