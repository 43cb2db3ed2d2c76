"""A guest as data: its memory slots, what each page holds, its vCPUs' registers. No I/O here.

Everything a launcher needs and everything a test compares with. Addresses are guest-physical (gpa) or
guest-virtual (gva) without C-bit; only ``Sregs.cr3`` and page-table entries carry it.
"""

from __future__ import annotations

import hashlib
import mmap
from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from sevkvm.abi.x86 import PAGE_MASK, PAGE_NBYTES
from sevkvm.lab.pattern import pattern

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sevkvm.abi.kvm import Regs, Sregs
    from sevkvm.lab.expected import Mapping, Miss

Buffer: TypeAlias = bytes | bytearray | memoryview | mmap.mmap

CHUNK_NBYTES: Final = 1 << 20


@dataclass(frozen=True, order=True)
class Slot:
    """A memory slot of the guest; the launcher decides where it lives in the VMM."""

    gpa: int
    nbytes: int
    name: str
    readonly: bool = False

    @property
    def end(self) -> int:
        """First gpa past the slot."""
        return self.gpa + self.nbytes


@dataclass(frozen=True)
class Region:
    """Whole pages of known contents. ``private``: encrypted at launch. ``data`` None means :mod:`sevkvm.lab.pattern`.

    ``data`` may be any large buffer, a mapped file for instance; it is only read, piece by piece.
    """

    gpa: int
    nbytes: int
    private: bool
    data: Buffer | None = None

    @property
    def end(self) -> int:
        """First gpa past the region."""
        return self.gpa + self.nbytes

    def read(self, gpa: int, nbytes: int) -> bytes:
        """Plaintext bytes at ``gpa``, which lies in the region with all its ``nbytes``."""
        if self.data is not None:
            with memoryview(self.data) as view:
                return bytes(view[gpa - self.gpa : gpa - self.gpa + nbytes])
        start = gpa & ~PAGE_MASK
        end = -(-(gpa + nbytes) // PAGE_NBYTES) * PAGE_NBYTES
        return pattern(start, end - start)[gpa - start : gpa - start + nbytes]


@dataclass(frozen=True)
class Landmark:
    """Something worth showing: ``nbytes`` of the guest that have a name."""

    name: str
    gva: int
    gpa: int
    nbytes: int


@dataclass(frozen=True)
class VcpuInit:
    """What a vCPU starts with; ``sregs.cr3`` has the C-bit and the PCID that the guest would have there."""

    regs: Regs
    sregs: Sregs


@dataclass(frozen=True)
class Image:
    """A guest to launch. ``cbit_pos`` None: nothing is encrypted and no C-bit is set anywhere.

    ``regions`` are sorted and do not overlap. Memory in no region is never written nor encrypted by the
    launcher: zeros to a plain VM, noise to whoever decrypts it. ``mappings`` are all leaves of the tables,
    sorted by gva, where the builder knows them; empty for a guest that made its own tables.
    """

    slots: tuple[Slot, ...]
    regions: tuple[Region, ...]
    vcpus: tuple[VcpuInit, ...]
    cbit_pos: int | None
    mappings: tuple[Mapping, ...] = ()
    misses: tuple[Miss, ...] = ()
    landmarks: tuple[Landmark, ...] = ()

    def __post_init__(self) -> None:
        for lower, upper in zip(self.regions, self.regions[1:], strict=False):
            if upper.gpa < lower.end:
                raise ValueError(f"regions overlap or are not sorted at gpa 0x{upper.gpa:x}")
        for region in self.regions:
            slot = self.slot_at(region.gpa)
            if slot is None or region.end > slot.end:
                raise ValueError(f"region at gpa 0x{region.gpa:x} does not lie in one slot")
            if (region.gpa | region.nbytes) & PAGE_MASK or region.nbytes <= 0:
                raise ValueError(f"region at gpa 0x{region.gpa:x} is not whole pages")
            if region.data is not None and len(region.data) < region.nbytes:
                raise ValueError(f"region at gpa 0x{region.gpa:x} has too little data")

    def slot_at(self, gpa: int) -> Slot | None:
        """The slot that holds ``gpa``, or None."""
        return next((slot for slot in self.slots if slot.gpa <= gpa < slot.end), None)

    def landmark(self, name: str) -> Landmark:
        """The landmark of that name; KeyError if there is none."""
        for landmark in self.landmarks:
            if landmark.name == name:
                return landmark
        raise KeyError(name)

    def pieces(self, gpa: int, nbytes: int) -> Iterator[tuple[int, int, Region | None]]:
        """(gpa, nbytes, region) in order over ``[gpa, gpa + nbytes)``; None where no region lies."""
        end = gpa + nbytes
        index = max(bisect_right([region.gpa for region in self.regions], gpa) - 1, 0)
        for region in self.regions[index:]:
            if region.gpa >= end:
                break
            if region.end <= gpa:
                continue
            if region.gpa > gpa:
                yield gpa, region.gpa - gpa, None
                gpa = region.gpa
            stop = min(region.end, end)
            yield gpa, stop - gpa, region
            gpa = stop
        if gpa < end:
            yield gpa, end - gpa, None

    def regions_of(self, slot: Slot) -> Iterator[Region]:
        """The regions in one slot, in order."""
        return (region for region in self.regions if slot.gpa <= region.gpa < slot.end)

    def private_ranges(self) -> list[tuple[int, int]]:
        """(gpa, nbytes) of what a launch encrypts: neighbours in one slot are one range."""
        ranges: list[tuple[int, int]] = []
        for slot in self.slots:
            last = -1
            for region in self.regions_of(slot):
                if not region.private:
                    continue
                if region.gpa == last:
                    gpa, nbytes = ranges.pop()
                    ranges.append((gpa, nbytes + region.nbytes))
                else:
                    ranges.append((region.gpa, region.nbytes))
                last = region.end
        return ranges

    def iter_plaintext(self, gpa: int, nbytes: int) -> Iterator[bytes]:
        """What the guest sees there, in pieces of at most CHUNK_NBYTES; zeros where no region lies."""
        for start, length, region in self.pieces(gpa, nbytes):
            for at in range(start, start + length, CHUNK_NBYTES):
                count = min(CHUNK_NBYTES, start + length - at)
                yield bytes(count) if region is None else region.read(at, count)

    def plaintext(self, gpa: int, nbytes: int) -> bytes:
        """:meth:`iter_plaintext` in one piece."""
        return b"".join(self.iter_plaintext(gpa, nbytes))

    def sha256(self, slot: Slot) -> str:
        """Hexadecimal SHA-256 of a slot's plaintext."""
        digest = hashlib.sha256()
        for chunk in self.iter_plaintext(slot.gpa, slot.nbytes):
            digest.update(chunk)
        return digest.hexdigest()


def tile(slots: Iterable[Slot], placed: Iterable[Region]) -> tuple[Region, ...]:
    """``placed`` regions and, in all the rest of the slots, private pages of :func:`pattern`."""
    regions = sorted(placed, key=lambda region: region.gpa)
    tiles = []
    for slot in sorted(slots):
        gpa = slot.gpa
        for region in regions:
            if not slot.gpa <= region.gpa < slot.end:
                continue
            if region.gpa > gpa:
                tiles.append(Region(gpa, region.gpa - gpa, private=True))
            tiles.append(region)
            gpa = region.end
        if gpa < slot.end:
            tiles.append(Region(gpa, slot.end - gpa, private=True))
    return tuple(tiles)
