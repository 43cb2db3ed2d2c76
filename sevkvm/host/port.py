"""Who issues an ioctl: ourselves, the deputy thread in the VMM, a mirror VM of ours, or a fake. Nothing above can tell.

A port issues system calls on descriptors and shares memory with a VMM: ``args`` is room for argument structs,
``scratch`` page-aligned room for data, both where ioctls find them. Guest memory is named by the VMM's addresses (hva);
where an ioctl finds it is ``operand``.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from types import TracebackType
from typing import Protocol

from sevkvm import errors, native
from sevkvm.abi.kvm import request_name

ARGS_NBYTES = 16 * 1024  # the largest struct is KVM_GET_CPUID2 with 256 entries (10,248 bytes)


class IoctlPort(Protocol):
    """The transport under KVM file descriptors."""

    @property
    def pid(self) -> int:
        """The process whose descriptors and memory these are."""
        ...

    @property
    def args_hva(self) -> int:
        """ARGS_NBYTES of room for argument structs."""
        ...

    @property
    def scratch_hva(self) -> int:
        """Page-aligned room for data."""
        ...

    @property
    def scratch_nbytes(self) -> int:
        """Its size."""
        ...

    def ioctl(self, fd: int, request: int, argument: int = 0) -> int:
        """Issue it; the kernel's result (>= 0), or IoctlError with its errno."""
        ...

    def submit(self, fd: int, request: int, argument: int = 0) -> None:
        """Issue it without waiting, where the port can; one at a time, ended by ``complete``."""
        ...

    def complete(self) -> int:
        """Wait for what was submitted: as ``ioctl``."""
        ...

    def readinto(self, hva: int, buffer: memoryview) -> int:
        """Read the process's memory; the short-read rule of ``memory.source``."""
        ...

    def read_pages(self, hvas: Sequence[int]) -> list[bytes | None]:
        """The page of 4096 bytes at each of ``hvas``, read together; None where it cannot be read."""
        ...

    def read(self, hva: int, nbytes: int) -> bytes:
        """Exactly nbytes, or MemoryFault."""
        ...

    def write(self, hva: int, data: bytes) -> None:
        """Write the process's memory, or MemoryFault."""
        ...

    def operand(self, hva: int, *, write: bool = False) -> int | None:
        """Where this port's ioctls find what the VMM has at ``hva``, to write it if need be; None: nowhere.

        What lies together in one slot lies together there, at the same offset in its page.
        """
        ...


class LocalPort:
    """Ourselves, for library users who are the VMM: descriptors and addresses are this process's own."""

    def __init__(self, scratch_nbytes: int = 1 << 20) -> None:
        self.pid = os.getpid()
        self.scratch_nbytes = -(-scratch_nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
        self._area = mmap.mmap(-1, ARGS_NBYTES + self.scratch_nbytes)
        self.args_hva = native.address_of(self._area)
        self.scratch_hva = self.args_hva + ARGS_NBYTES
        self._submitted = (-1, 0, 0)

    def ioctl(self, fd: int, request: int, argument: int = 0) -> int:
        """ioctl(2) on this thread."""
        result = native.ioctl(fd, request, argument)
        if result < 0:
            raise errors.IoctlError(request_name(request), -result)
        return result

    def submit(self, fd: int, request: int, argument: int = 0) -> None:
        """Remember it: this thread is the only one that could issue it."""
        self._submitted = fd, request, argument

    def complete(self) -> int:
        """Issue what was submitted."""
        return self.ioctl(*self._submitted)

    def readinto(self, hva: int, buffer: memoryview) -> int:
        """Read our own memory; an unmapped address is a short read, not a crash."""
        return native.read_into(self.pid, hva, buffer)

    def read_pages(self, hvas: Sequence[int]) -> list[bytes | None]:
        """Read pages of our own memory."""
        return native.read_pages(self.pid, hvas)

    def read(self, hva: int, nbytes: int) -> bytes:
        """Exactly nbytes, or MemoryFault."""
        return native.read(self.pid, hva, nbytes)

    def write(self, hva: int, data: bytes) -> None:
        """Write our own memory; a read-only page is a MemoryFault, not a crash."""
        native.write(self.pid, hva, data)

    def operand(self, hva: int, *, write: bool = False) -> int | None:
        """Just there."""
        return hva

    def close(self) -> None:
        """Unmap the area; what was decrypted into it is gone."""
        self._area.close()

    def __enter__(self) -> LocalPort:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
