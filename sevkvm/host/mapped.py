"""A VMM's memory as another process has it: mapped here where that can be, else copied, which does not stop the VMM.

Guest memory goes by the VMM's addresses, the area for structs and data by ours; none is both.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType

from sevkvm import errors, native
from sevkvm.abi import kvm as abi
from sevkvm.host.deputy import SCRATCH_NBYTES
from sevkvm.host.port import LocalPort
from sevkvm.host.ramview import RamView


class MappedVmm:
    """The half of an IoctlPort that is memory: the VMM's, and an area of our own for structs and data.

    ``on_hidden`` is called once, when an ioctl is to work on memory that is not mapped here.
    """

    def __init__(self, pid: int, *, scratch_nbytes: int = SCRATCH_NBYTES) -> None:
        self.pid = pid
        self._own_pid = os.getpid()
        self.ram = RamView(pid)
        self.on_hidden: Callable[[], None] | None = None
        self._areas = [LocalPort(scratch_nbytes)]

    @property
    def args_hva(self) -> int:
        """Room for argument structs, in our own process."""
        return self._areas[-1].args_hva

    @property
    def scratch_hva(self) -> int:
        """Room for data, in our own process."""
        return self._areas[-1].scratch_hva

    @property
    def scratch_nbytes(self) -> int:
        """Its size."""
        return self._areas[-1].scratch_nbytes

    def show(self, spans: Iterable[tuple[int, int]]) -> list[str | None]:
        """Map ``(hva, nbytes)`` of the VMM here; for each None, or why it cannot be."""
        spans = list(spans)
        reasons = [self.ram.add(hva, nbytes) for hva, nbytes in spans]
        # an address of the area must not be one of guest memory, too
        while any(self._in_area(hva, nbytes) for hva, nbytes in spans):
            self._areas.append(LocalPort(self.scratch_nbytes))
        return reasons

    def _in_area(self, hva: int, nbytes: int = 1) -> bool:
        return hva < self.scratch_hva + self.scratch_nbytes and self.args_hva < hva + nbytes

    def _ours(self, hva: int) -> int | None:
        return hva if self._in_area(hva) else self.ram.at(hva)

    def operand(self, hva: int, *, write: bool = False) -> int | None:
        """Where guest memory is mapped here."""
        found = self.ram.at(hva, write=write)
        if found is None and self.on_hidden is not None:
            tell, self.on_hidden = self.on_hidden, None
            tell()
        return found

    def readinto(self, hva: int, buffer: memoryview) -> int:
        """The short-read rule of ``memory.source``; a page that a file lost is a short read, not a SIGBUS."""
        ours = self._ours(hva)
        if ours is None:
            return native.read_into(self.pid, hva, buffer)
        room = len(buffer) if self._in_area(hva) else self.ram.extent(hva)
        done = native.read_into(self._own_pid, ours, buffer[:room])
        if done < room or room >= len(buffer):
            return done
        return done + self.readinto(hva + done, buffer[done:])

    def read_pages(self, hvas: Sequence[int]) -> list[bytes | None]:
        """The page of 4096 bytes at each of ``hvas``, read together; None where it cannot be read."""
        ours = [self._ours(hva) for hva in hvas]
        near = iter(native.read_pages(self._own_pid, [hva for hva in ours if hva is not None]))
        there = [hva for hva, known in zip(hvas, ours, strict=True) if known is None]
        far = iter(native.read_pages(self.pid, there) if there else [])
        return [next(far if known is None else near) for known in ours]

    def read(self, hva: int, nbytes: int) -> bytes:
        """Exactly nbytes, or MemoryFault."""
        buffer = bytearray(nbytes)
        done = self.readinto(hva, memoryview(buffer))
        if done < nbytes:
            raise errors.MemoryFault("hva", hva + done, reason="no readable memory of the VMM is there")
        return bytes(buffer)

    def write(self, hva: int, data: bytes) -> None:
        """Write the area or guest memory, or MemoryFault."""
        if self._in_area(hva):
            native.write(self._own_pid, hva, data)
            return
        ours = self.ram.at(hva, write=True)
        if ours is None:
            native.write(self.pid, hva, data)
        else:
            native.write(self._own_pid, ours, data)

    def close(self) -> None:
        """Unmap everything."""
        self.ram.close()
        for area in self._areas:
            area.close()


class PlainPort(MappedVmm):
    """An IoctlPort for a guest that is not encrypted: its memory and nothing else."""

    def ioctl(self, fd: int, request: int, argument: int = 0) -> int:
        """There is no VM to ask."""
        raise errors.IoctlError(abi.request_name(request), errno.EIO)

    def submit(self, fd: int, request: int, argument: int = 0) -> None:
        """There is no VM to ask."""
        self.ioctl(fd, request, argument)

    def complete(self) -> int:
        """Nothing can have been submitted."""
        raise errors.IoctlError("ioctl", errno.EIO)

    def __enter__(self) -> PlainPort:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
