"""Where the kernel's image and its modules are in guest-physical memory, by what is mapped executable or read-only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sevkvm.audit.rules import IMAGE_SHARED
from sevkvm.audit.scene import ImagePart
from sevkvm.linux.vmcoreinfo import START_KERNEL_MAP
from sevkvm.native import EntryFlag
from sevkvm.paging.walk import Walker

if TYPE_CHECKING:
    from sevkvm.audit.scene import Scene, View
    from sevkvm.paging.listing import Run

# The image, then modules; above are the fixed mappings. Source: Linux Documentation/arch/x86/x86_64/mm.rst (v6.1).
IMAGE_START: Final = START_KERNEL_MAP
IMAGE_END: Final = 0xFFFF_FFFF_FF00_0000
PIECES_MAX: Final = 1 << 15  # 128 MiB by 4 KiB pages; the image itself has large ones
_WRITABLE, _NX = int(EntryFlag.WRITABLE), int(EntryFlag.NX)


class ImageWatch:
    """Is shown the runs of one view, ascending, and fills ``scene.image``."""

    def __init__(self, scene: Scene, view: View) -> None:
        self._scene = scene
        self._view = view
        self._walker = Walker(scene.memory, view.form)
        self._budget = PIECES_MAX if scene.findings.wants(IMAGE_SHARED) else 0

    def add(self, run: Run) -> None:
        """Text, or read-only data."""
        start, end = max(run.gva, IMAGE_START), min(run.gva + run.nbytes, IMAGE_END)
        executable = not run.flags & _NX
        if start >= end or not self._budget or not (executable or not run.flags & _WRITABLE):
            return
        parts = self._scene.image
        for piece in self._walker.pieces(start, end - start):
            if not self._budget:
                root = self._view.form.root_gpa
                self._scene.findings.cut(
                    f"root 0x{root:x}: the kernel's image from gva 0x{piece.gva:x} on was not looked at, "
                    f"after {PIECES_MAX} pages"
                )
                return
            self._budget -= 1
            if piece.gpa is None:
                continue
            if parts and parts[-1].end == piece.gpa and parts[-1].executable == executable:
                parts[-1] = parts[-1]._replace(end=piece.gpa + piece.nbytes)
            else:
                parts.append(ImagePart(piece.gpa, piece.gpa + piece.nbytes, executable))
