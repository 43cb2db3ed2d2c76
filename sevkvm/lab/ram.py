"""Guest memory in the VMM's address space."""

from __future__ import annotations

import mmap
import os
from contextlib import suppress
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sevkvm.lab.image import Image, Slot


class Backing(str, Enum):
    """What kind of memory guest RAM is: private to the VMM, or a file that others could map too."""

    ANONYMOUS = "anonymous"
    MEMFD = "memfd"


def map_slot(slot: Slot, backing: Backing) -> mmap.mmap:
    """Zeroed memory for a slot."""
    if backing is Backing.ANONYMOUS:
        ram = mmap.mmap(-1, slot.nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with suppress(OSError):  # a kernel without huge pages; QEMU asks for them too
            ram.madvise(mmap.MADV_HUGEPAGE)
        return ram
    fd = os.memfd_create(f"sevkvm-lab-{slot.name}", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, slot.nbytes)
        return mmap.mmap(fd, slot.nbytes, flags=mmap.MAP_SHARED)  # keeps a descriptor of its own
    finally:
        os.close(fd)


def fill(ram: mmap.mmap, slot: Slot, image: Image) -> None:
    """Write the image's plaintext; memory in none of its regions is not touched."""
    for region in image.regions_of(slot):
        ram.seek(region.gpa - slot.gpa)
        for chunk in image.iter_plaintext(region.gpa, region.nbytes):
            ram.write(chunk)
