"""Rules about rights, in one pass over what each address space maps; bounded by runs, not by pages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from sevkvm.audit.image import ImageWatch
from sevkvm.audit.rules import DIRECT_MAP_SHARED, KERNEL_USER, KERNEL_WX, Severity
from sevkvm.audit.scene import RUNS_MAX
from sevkvm.native import EntryFlag
from sevkvm.paging.listing import Listing, ListLimits
from sevkvm.paging.walk import Walker

if TYPE_CHECKING:
    from sevkvm.audit.scene import Scene, View
    from sevkvm.paging.listing import Run

_UNREADABLE_MAX: Final = 1024
# Linux arch/x86/include/uapi/asm/vsyscall.h: VSYSCALL_ADDR
VSYSCALL: Final = 0xFFFF_FFFF_FF60_0000
_PAGE: Final = 0x1000
_WRITABLE, _USER, _NX = int(EntryFlag.WRITABLE), int(EntryFlag.USER), int(EntryFlag.NX)
_PRIVATE: Final = int(EntryFlag.PRIVATE)
_RIGHTS: Final = _WRITABLE | _USER | _NX


class _Joined:
    """Ranges that touch become one; ``tell`` gets each when it has ended."""

    def __init__(self, tell: Callable[[int, int], None]) -> None:
        self._tell = tell
        self._start = self._end = 0

    def add(self, start: int, end: int) -> None:
        if start != self._end:
            self.flush()
            self._start = start
        self._end = end

    def flush(self) -> None:
        if self._end > self._start:
            self._tell(self._start, self._end)
        self._start = self._end = 0


def examine(scene: Scene) -> None:
    """Look through every view."""
    for view in scene.views:
        _examine(scene, view)


def _examine(scene: Scene, view: View) -> None:
    findings, form = scene.findings, view.form

    def write_execute(start: int, end: int) -> None:
        if findings.counted(KERNEL_WX):
            findings.add(KERNEL_WX, KERNEL_WX.title, scene.place(view, start, end - start))

    def user(start: int, end: int) -> None:
        _tell_user(scene, view, start, end)

    no_nx = not form.nx or form.levels < 3
    encrypted = form.cbit_pos is not None and form.levels >= 3
    wx, users = _Joined(write_execute), _Joined(user)
    image = ImageWatch(scene, view)
    for run in _runs(scene, view):
        end = run.gva + run.nbytes
        if run.flags & _RIGHTS == _WRITABLE and not no_nx:
            wx.add(run.gva, end)
        if not view.kernel:
            continue
        if run.flags & _USER:
            users.add(run.gva, end)
        if encrypted:
            image.add(run)
            if not run.flags & _PRIVATE:
                _note_direct(scene, run)
    wx.flush()
    users.flush()


def _runs(scene: Scene, view: View) -> Iterator[Run]:
    listing = Listing(
        scene.memory,
        view.form,
        ranges=((view.start, view.end),),
        limits=ListLimits(unreadable=_UNREADABLE_MAX),
    )
    for run in listing.runs(_RIGHTS | _PRIVATE):
        if not scene.runs_left:
            scene.findings.cut(
                f"root 0x{view.form.root_gpa:x}: mappings from gva 0x{run.gva:x} on were not looked at, "
                f"after {RUNS_MAX} runs of equal rights"
            )
            break
        scene.runs_left -= 1
        yield run
    scene.unreadable += [(table, view) for table in listing.report.unreadable]


def _tell_user(scene: Scene, view: View, start: int, end: int) -> None:
    """What user mode can reach; the vsyscall page alone, unless it can be written, is Linux's own doing."""
    findings = scene.findings
    if (start, end) == (VSYSCALL, VSYSCALL + _PAGE) and not _writable(scene, view, start):
        if findings.counted(KERNEL_USER, Severity.NOTE):
            what = "user mode can read the vsyscall page, as Linux wants it"
            findings.add(KERNEL_USER, what, scene.place(view, start, _PAGE), severity=Severity.NOTE)
    elif findings.counted(KERNEL_USER):
        findings.add(KERNEL_USER, KERNEL_USER.title, scene.place(view, start, end - start))


def _writable(scene: Scene, view: View, gva: int) -> bool:
    return Walker(scene.memory, view.form).translate(gva).writable


def _note_direct(scene: Scene, run: Run) -> None:
    """Remember the RAM that a direct map has as shared."""
    if not scene.findings.wants(DIRECT_MAP_SHARED):
        return
    for window in scene.pages.direct_maps:
        start = max(run.gva, window.gva)
        end = min(run.gva + run.nbytes, window.gva + window.nbytes)
        if start < end:
            extents = scene.slots.extents(start - window.gva, end - start)
            scene.direct_shared += [(extent.gpa, extent.nbytes) for extent in extents]
