"""What the rules look at: the guest's address spaces, and what was learned of them once for all rules."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from sevkvm.abi import x86
from sevkvm.audit.report import Entry, Place
from sevkvm.paging.fetch import fetch_tables
from sevkvm.paging.walk import Walker

if TYPE_CHECKING:
    from sevkvm.audit.report import Findings
    from sevkvm.audit.swiotlb import Swiotlb
    from sevkvm.memory.source import PhysicalMemory, SlotMap
    from sevkvm.pages.pagemap import PageMap
    from sevkvm.paging.form import PagingForm
    from sevkvm.paging.listing import UnreadableTable
    from sevkvm.paging.scan import ScanResult

SPACES_MAX: Final = 64
RUNS_MAX: Final = 1 << 18  # of equal rights, in all; a Linux has some thousands
_UPPER: Final = struct.Struct("<256Q")
_GVA_END: Final = 1 << 64
_CHANGING: Final = x86.PTE_A | x86.PTE_D


class View(NamedTuple):
    """A part of an address space that is looked at; ``roots``: the gpa of all top tables that have it in common."""

    form: PagingForm
    start: int
    end: int
    roots: tuple[int, ...]

    @property
    def kernel(self) -> bool:
        """It is the kernel's half."""
        return self.end == _GVA_END and self.start > 0


class ImagePart(NamedTuple):
    """Guest-physical memory of the kernel's image or of a module, mapped executable or read-only."""

    gpa: int
    end: int
    executable: bool


@dataclass
class Scene:
    """``pages``: how the tables classify RAM; ``mapped``: which gpas they map how, of an encrypted guest.

    runs_left: how many runs may still be looked at. image, unreadable, direct_shared ((gpa, nbytes)) are filled while
    mappings are looked through.
    """

    memory: PhysicalMemory
    slots: SlotMap
    forms: Sequence[PagingForm]
    pages: PageMap
    mapped: ScanResult | None
    swiotlb: Swiotlb | None
    findings: Findings
    views: list[View] = field(default_factory=list)
    runs_left: int = field(default_factory=lambda: RUNS_MAX)
    image: list[ImagePart] = field(default_factory=list)
    unreadable: list[tuple[UnreadableTable, View]] = field(default_factory=list)
    direct_shared: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if len(self.forms) > SPACES_MAX:
            left = len(self.forms) - SPACES_MAX
            self.findings.cut(f"{left} of {len(self.forms)} address spaces were not listed")
        self.views = split(self.memory, self.forms[:SPACES_MAX])

    def place(self, view: View, gva: int, nbytes: int) -> Place:
        """A range of virtual addresses, with the walk to its first page."""
        found = Walker(self.memory, view.form).translate(gva)
        entries = tuple(Entry(step.level, step.table_gpa, step.index, step.entry) for step in found.steps)
        return Place(gva, found.gpa, nbytes, view.roots, entries)


def kernel_start(form: PagingForm) -> int | None:
    """Where the kernel's half begins; None where the paging mode has no halves."""
    return _GVA_END - (1 << 11 + 9 * form.levels) if form.mode.long else None


def split(memory: PhysicalMemory, forms: Sequence[PagingForm]) -> list[View]:
    """Kernel halves first, those that are the same (as all processes' are) once; then the rest of each space."""
    halves: dict[tuple[object, ...], list[PagingForm]] = {}
    lower: list[View] = []
    for form in forms:
        start = kernel_start(form)
        if start is None:
            lower.append(View(form, 0, _GVA_END, (form.root_gpa,)))
            continue
        (root,) = fetch_tables(memory, [form.root_gpa], x86.PAGE_NBYTES)
        upper: object = form.root_gpa
        if root is not None:
            upper = tuple(entry & ~_CHANGING for entry in _UPPER.unpack_from(root, _UPPER.size))
            lower.append(View(form, 0, start, (form.root_gpa,)))
        halves.setdefault((upper, form.mode, form.nx, form.cbit_pos), []).append(form)
    views = [
        View(same[0], kernel_start(same[0]) or 0, _GVA_END, tuple(form.root_gpa for form in same))
        for same in halves.values()
    ]
    return views + lower
