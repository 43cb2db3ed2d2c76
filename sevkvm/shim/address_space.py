"""Address spaces of the supervised processes: who shares one, whether it still lives, what it maps.

An open ``/proc/PID/mem`` stays with the address space it was opened on: after exec(2) or exit it reads nothing at
all, where a living one says EIO for an unmapped address. Source: Linux fs/proc/base.c, mem_rw (v6.18).
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from bisect import bisect_right
from collections.abc import Iterator
from typing import Final

from sevkvm import errors, native
from sevkvm.shim.spa import SpaMap, Vma, parse_maps
from sevkvm.shim.target import Backing

# PROCMAP_QUERY of linux/fs.h (6.11): struct procmap_query, 104 bytes, and its flags
_PROCMAP_QUERY: Final = 0xC0686611
_QUERY: Final = struct.Struct("<13Q")
_QUERY_READABLE, _QUERY_WRITABLE, _QUERY_SHARED = 1, 2, 8


class AddressSpace:
    """One ``mm``; two are the same only if they are the same object. ``pid`` is the process it was met in."""

    def __init__(self, pid: int, number: int, spas: SpaMap) -> None:
        self.pid = pid
        self.number = number
        self._spas = spas
        self._mem = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
        self._maps = os.open(f"/proc/{pid}/maps", os.O_RDONLY | os.O_CLOEXEC)
        self.can_query = True
        self._kept: list[tuple[int, int, list[Backing]]] = []

    def alive(self) -> bool:
        """Does any task still have it? False after the exec or exit of the last one."""
        try:
            return bool(os.pread(self._mem, 1, 0))
        except OSError as error:
            return error.errno == errno.EIO

    def close(self) -> None:
        """Forget it."""
        os.close(self._mem)
        os.close(self._maps)

    def backing(self, hva: int, nbytes: int) -> list[Backing]:
        """TargetMemory.backing."""
        for start, end, known in self._kept:
            if start <= hva and hva + nbytes <= end:
                return _clip(known, hva, nbytes)
        return self._look_up(hva, nbytes)

    def keep(self, hva: int, nbytes: int) -> None:
        """TargetMemory.keep."""
        # newest first: an older VM's range at the same addresses may not have been released yet
        self._kept.insert(0, (hva, hva + nbytes, self._look_up(hva, nbytes)))

    def release(self, hva: int, nbytes: int) -> None:
        """TargetMemory.release."""
        self._kept = [each for each in self._kept if each[:2] != (hva, hva + nbytes)]

    def _look_up(self, hva: int, nbytes: int) -> list[Backing]:
        found: list[Backing] = []
        end = hva + nbytes
        for vma in self._vmas(hva, end):
            if not vma.readable or vma.start > hva:
                break
            length = min(end, vma.end) - hva
            spa = self._spas.address(self.number, vma, hva)
            last = found[-1] if found else None
            if last and last.spa + last.nbytes == spa and last.writable == vma.writable:
                found[-1] = Backing(last.hva, last.nbytes + length, last.spa, last.writable)
            else:
                found.append(Backing(hva, length, spa, vma.writable))
            hva += length
        return found

    def _vmas(self, hva: int, end: int) -> Iterator[Vma]:
        """The mappings from the one that holds ``hva`` on, up to ``end``."""
        while hva < end and self.can_query:
            vma = self._query(hva)
            if vma is None:
                break
            yield vma
            hva = vma.end
        if self.can_query:
            return
        vmas = parse_maps(self._read_maps())
        first = max(bisect_right(vmas, hva, key=lambda vma: vma.start) - 1, 0)
        for vma in vmas[first:]:
            if vma.start >= end:
                return
            if vma.end > hva:
                yield vma

    def _query(self, hva: int) -> Vma | None:
        """One mapping by PROCMAP_QUERY; None where nothing is mapped, or where the kernel does not know it."""
        buffer = bytearray(_QUERY.pack(_QUERY.size, 0, hva, *[0] * 10))
        try:
            fcntl.ioctl(self._maps, _PROCMAP_QUERY, buffer)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ESRCH):
                self.can_query = False
            return None
        _, _, _, start, end, flags, _, offset, inode, device, *_ = _QUERY.unpack(buffer)
        major, minor = device & 0xFFFFFFFF, device >> 32
        return Vma(
            start,
            end,
            bool(flags & _QUERY_READABLE),
            bool(flags & _QUERY_WRITABLE),
            bool(flags & _QUERY_SHARED),
            offset,
            major << 20 | minor,
            inode,
        )

    def _read_maps(self) -> bytes:
        pieces, position = [], 0
        while piece := os.pread(self._maps, 1 << 16, position):
            pieces.append(piece)
            position += len(piece)
        return b"".join(pieces)


def _clip(known: list[Backing], hva: int, nbytes: int) -> list[Backing]:
    end, pieces = hva + nbytes, []
    for each in known:
        start, stop = max(hva, each.hva), min(end, each.hva + each.nbytes)
        if start < stop:
            pieces.append(Backing(start, stop - start, each.spa + start - each.hva, each.writable))
    return pieces


class AddressSpaces:
    """All that were met on one host."""

    def __init__(self) -> None:
        self._spas = SpaMap()
        self._by_pid: dict[int, AddressSpace] = {}
        self._count = 0

    def of(self, pid: int) -> AddressSpace | None:
        """The address space of process ``pid``; None if it is gone, or not ours to look at."""
        known = self._by_pid.get(pid)
        if known is not None and known.alive():
            return known
        if known is not None:
            del self._by_pid[pid]
            known.close()
        try:
            for each in self._by_pid.values():
                # a child that still shares its parent's memory (vfork), until it execs: not to be remembered
                if each.alive() and native.same_memory(pid, each.pid):
                    return each
            self._count += 1
            fresh = AddressSpace(pid, self._count, self._spas)
        except (OSError, errors.SevKvmError):
            return None
        self._by_pid[pid] = fresh
        return fresh

    def forget_dead(self) -> list[AddressSpace]:
        """Drop those whose last task is gone; returns them."""
        dead = [each for each in self._by_pid.values() if not each.alive()]
        for each in dead:
            del self._by_pid[each.pid]
            each.close()
        return dead

    def close(self) -> None:
        """Forget all."""
        for each in self._by_pid.values():
            each.close()
        self._by_pid.clear()
