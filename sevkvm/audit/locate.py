"""From guest-physical memory back to a virtual address that maps it: the direct map first, then a bounded search."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from sevkvm.native import EntryFlag
from sevkvm.paging.listing import Listing
from sevkvm.paging.walk import Walker

if TYPE_CHECKING:
    from sevkvm.audit.report import Place
    from sevkvm.audit.scene import Scene, View
    from sevkvm.paging.listing import Leaf

LEAVES_MAX: Final = 1 << 20  # of all kernel halves, and again of everything else
_PRIVATE: Final = int(EntryFlag.PRIVATE)


class Wanted(NamedTuple):
    """A range of gpas, and how it is to be mapped."""

    gpa: int
    end: int
    private: bool


def in_direct_map(scene: Scene, wanted: Wanted) -> Place | None:
    """Where the kernel's direct map has the first byte of the range, if it maps it that way."""
    for window in scene.pages.direct_maps:
        if wanted.gpa >= window.nbytes:
            continue
        gva = window.gva + wanted.gpa
        for view in scene.views:
            if not view.kernel or gva < view.start:
                continue
            found = Walker(scene.memory, view.form).translate(gva)
            if found.gpa == wanted.gpa and found.private == wanted.private:
                return scene.place(view, gva, wanted.end - wanted.gpa)
    return None


def elsewhere(scene: Scene, wanted: Sequence[Wanted]) -> dict[Wanted, Place]:
    """Where else than in the direct map the ranges (disjoint, if mapped alike) are mapped; the first place of each.

    What is not in the answer was not found; a search that was cut is told in the scene's findings.
    """
    left = {private: sorted(each for each in wanted if each.private == private) for private in (False, True)}
    found: dict[Wanted, Place] = {}
    for kernel in (True, False):
        budget = LEAVES_MAX
        for view in scene.views:
            if view.kernel != kernel:
                continue
            for leaf in _leaves(scene, view):
                if not any(left.values()):
                    return found
                if not budget:
                    scene.findings.cut(
                        f"root 0x{view.form.root_gpa:x}: what maps some memory a second time was not looked for "
                        f"from gva 0x{leaf.gva:x} on, after {LEAVES_MAX} pages"
                    )
                    break
                budget -= 1
                for each in _taken(left[leaf.flags & _PRIVATE != 0], leaf):
                    gpa = max(each.gpa, leaf.gpa)
                    nbytes = min(each.end, leaf.gpa + leaf.nbytes) - gpa
                    found[each] = scene.place(view, leaf.gva + gpa - leaf.gpa, nbytes)
    return found


def _taken(left: list[Wanted], leaf: Leaf) -> list[Wanted]:
    """What overlaps the page; it is wanted no longer. ``left`` is sorted."""
    end = bisect_left(left, leaf.gpa + leaf.nbytes, key=lambda each: each.gpa)
    start = end
    while start and left[start - 1].end > leaf.gpa:
        start -= 1
    taken = left[start:end]
    del left[start:end]
    return taken


def _leaves(scene: Scene, view: View) -> Iterator[Leaf]:
    """All leaves of a view but those of direct maps."""
    ranges = []
    start = view.start
    for window in sorted(scene.pages.direct_maps):
        end = window.gva + window.nbytes
        if view.start <= window.gva and end <= view.end:
            ranges.append((start, max(start, window.gva)))
            start = max(start, end)
    ranges.append((start, view.end))
    return Listing(scene.memory, view.form, ranges=ranges).leaves()
