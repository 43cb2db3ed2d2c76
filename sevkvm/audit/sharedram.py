"""How much RAM is shared, and where: the facts, no judgement."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sevkvm.audit import locate
from sevkvm.audit.report import Place
from sevkvm.audit.rules import DIRECT_MAP_SHARED, SHARED_RAM

if TYPE_CHECKING:
    from sevkvm.audit.scene import Scene

LARGEST: Final = 8


def amount(nbytes: int) -> str:
    """A size in the largest unit that divides it."""
    for shift, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if nbytes and nbytes % (1 << shift) == 0:
            return f"{nbytes >> shift} {unit}"
    return f"{nbytes} bytes"


class SharedRam:
    """Adds up shared RAM, ascending, and keeps the largest runs."""

    def __init__(self) -> None:
        self._nbytes = self._count = 0
        self._largest: list[tuple[int, int]] = []
        self._start = self._end = 0

    def add(self, gpa: int, end: int) -> None:
        """Shared memory, right after what was told before or not."""
        if gpa != self._end:
            self._flush()
            self._start = gpa
        self._end = end

    def _flush(self) -> None:
        nbytes = self._end - self._start
        if nbytes:
            self._nbytes += nbytes
            self._count += 1
            self._largest = sorted([*self._largest, (-nbytes, self._start)])[:LARGEST]

    def tell(self, scene: Scene) -> None:
        """One finding, if anything is shared."""
        self._flush()
        self._start = self._end = 0
        if not self._count or not scene.findings.counted(SHARED_RAM):
            return
        told = f"{amount(self._nbytes)} of RAM in {_runs(self._count)}"
        if scene.swiotlb is not None:
            swiotlb = scene.swiotlb
            size = amount(swiotlb.end - swiotlb.gpa)
            told += f"; swiotlb at gpa 0x{swiotlb.gpa:x} to 0x{swiotlb.end:x}, {size}"
        places = []
        for less, gpa in self._largest:
            found = locate.in_direct_map(scene, locate.Wanted(gpa, gpa - less, False))
            places.append(found or Place(None, gpa, -less))
        scene.findings.add(SHARED_RAM, told, *places)


def tell_direct_map(scene: Scene) -> None:
    """One finding, if the direct map has anything as shared."""
    shared = sorted(set(scene.direct_shared))
    if not shared or not scene.findings.counted(DIRECT_MAP_SHARED):
        return
    total = sum(nbytes for _, nbytes in shared)
    largest = sorted(shared, key=lambda part: (-part[1], part[0]))[:LARGEST]
    places = [locate.in_direct_map(scene, locate.Wanted(gpa, gpa + nbytes, False)) for gpa, nbytes in largest]
    told = f"{amount(total)} in {_runs(len(shared))}"
    scene.findings.add(DIRECT_MAP_SHARED, told, *(place for place in places if place is not None))


def _runs(count: int) -> str:
    return "1 run" if count == 1 else f"{count} runs"
