"""An address space of our own making, for door 2."""

from __future__ import annotations

from bisect import bisect_right, insort
from dataclasses import dataclass, field
from typing import Final

from sevkvm.shim.cipher import Bytes
from sevkvm.shim.target import Backing

PAGE_NBYTES: Final = 4096
_FIRST_HVA: Final = 0x7F00_0000_0000
_GAP_NBYTES: Final = 1 << 20  # unmapped space behind every region
_SPA_STRIDE: Final = 1 << 40  # every region's bytes have fake physical addresses of their own


@dataclass(order=True)
class Region:
    """Memory at ``hva``; ``data`` may be shared between regions, which then must agree on ``spa``."""

    hva: int
    data: bytearray = field(compare=False)
    spa: int = field(compare=False)
    writable: bool = field(compare=False, default=True)

    @property
    def end(self) -> int:
        """First hva past it."""
        return self.hva + len(self.data)


class FakeMemory:
    """Regions at fake addresses; what lies between them is not mapped."""

    def __init__(self) -> None:
        self.regions: list[Region] = []
        self._next_hva = _FIRST_HVA
        self._next_spa = _SPA_STRIDE

    def map(
        self,
        data: bytearray,
        *,
        hva: int | None = None,
        writable: bool = True,
        alias_of: Region | None = None,
    ) -> Region:
        """Map ``data`` (whole pages). ``alias_of``: the same backing seen at a second address."""
        if len(data) % PAGE_NBYTES or not data:
            raise ValueError("a region is a whole number of pages")
        if hva is None:
            hva = self._next_hva
            self._next_hva += len(data) + _GAP_NBYTES
        if hva % PAGE_NBYTES or any(hva < r.end and r.hva < hva + len(data) for r in self.regions):
            raise ValueError(f"no room for a region at hva 0x{hva:x}")
        spa = self._next_spa
        if alias_of is None:
            self._next_spa += _SPA_STRIDE
        else:
            spa = alias_of.spa
        region = Region(hva, data if alias_of is None else alias_of.data, spa, writable)
        insort(self.regions, region)
        return region

    def unmap(self, region: Region) -> None:
        """Take a region out of the address space."""
        self.regions.remove(region)

    def find(self, hva: int) -> Region | None:
        """The region that holds ``hva``."""
        index = bisect_right(self.regions, hva, key=lambda region: region.hva) - 1
        if index >= 0 and hva < self.regions[index].end:
            return self.regions[index]
        return None

    def backing(self, hva: int, nbytes: int) -> list[Backing]:
        """TargetMemory.backing."""
        found: list[Backing] = []
        end = hva + nbytes
        while hva < end and (region := self.find(hva)):
            length = min(end, region.end) - hva
            found.append(Backing(hva, length, region.spa + hva - region.hva, region.writable))
            hva += length
        return found

    def readinto(self, hva: int, buffer: memoryview) -> int:
        """TargetMemory.readinto."""
        done = 0
        while done < len(buffer) and (region := self.find(hva + done)):
            offset = hva + done - region.hva
            length = min(len(buffer) - done, len(region.data) - offset)
            buffer[done : done + length] = region.data[offset : offset + length]
            done += length
        return done

    def write(self, hva: int, data: Bytes) -> int:
        """TargetMemory.write."""
        done = 0
        while done < len(data) and (region := self.find(hva + done)) and region.writable:
            offset = hva + done - region.hva
            length = min(len(data) - done, len(region.data) - offset)
            region.data[offset : offset + length] = data[done : done + length]
            done += length
        return done

    def keep(self, hva: int, nbytes: int) -> None:
        """TargetMemory.keep: nothing is looked up here that could be remembered."""

    def release(self, hva: int, nbytes: int) -> None:
        """TargetMemory.release."""
