"""One KVM_MEMORY_ENCRYPT_OP under way: the tools that the command handlers share.

Mirrors the helpers of Linux arch/x86/kvm/svm/sev.c and drivers/crypto/ccp/sev-dev.c.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from sevkvm.shim.firmware import Firmware
from sevkvm.shim.firmware_failure import DriverFailure, FirmwareFailure
from sevkvm.shim.generation import Generation
from sevkvm.shim.target import Backing, Caller, read_exactly

if TYPE_CHECKING:
    from sevkvm.shim.log import Record
    from sevkvm.shim.vm import Vm

_ADDRESS_END: Final = 1 << 64
_PAGE_MASK: Final = 4095
BLOB_MAX_NBYTES: Final = 16 * 1024  # SEV_FW_BLOB_MAX_SIZE
_Result = TypeVar("_Result")


class Errno(Exception):
    """The system call fails with ``errno``."""

    def __init__(self, code: int) -> None:
        super().__init__(errno.errorcode.get(code, str(code)))
        self.errno = code


class KernelCorrupted(Exception):
    """A real kernel would have overwritten memory of its own here: the caller does not survive it."""


class HasError(Protocol):
    """A command struct with an ``error`` field."""

    error: int


def reach_firmware(struct: HasError, command: Callable[[], _Result]) -> _Result:
    """sev_do_cmd: a status becomes EIO and ``error``, which success sets to 0."""
    try:
        result = command()
    except FirmwareFailure as failure:
        struct.error = failure.status
        raise Errno(errno.EIO) from failure
    except DriverFailure as failure:
        if failure.error is not None:
            struct.error = failure.error
        raise Errno(failure.errno) from failure
    struct.error = 0
    return result


def forget_guest(firmware: Firmware, handle: int) -> None:
    """sev_unbind_asid: DEACTIVATE and DECOMMISSION, whose failure nobody hears of."""
    for command in (firmware.deactivate, firmware.decommission):
        with suppress(FirmwareFailure, DriverFailure):
            command(handle)


def forget_snp_guest(firmware: Firmware, context: int) -> None:
    """snp_decommission_context, which warns at most."""
    with suppress(FirmwareFailure, DriverFailure):
        firmware.snp_decommission(context)


def lengths_told(refusal: Errno) -> tuple[int, ...]:
    """What a firmware that refused has put into the length fields; nothing if it was not the firmware."""
    cause = refusal.__cause__
    return cause.lengths if isinstance(cause, FirmwareFailure) else ()


class UserCopies:
    """A kernel call's copies from and to the memory of whoever made it."""

    caller: Caller

    def copy_from_user(self, hva: int, nbytes: int) -> bytes:
        """``nbytes`` of the caller's memory, or EFAULT."""
        data = read_exactly(self.caller.memory, hva, nbytes)
        if data is None:
            raise Errno(errno.EFAULT)
        return data

    def copy_to_user(self, hva: int, data: bytes) -> None:
        """Into the caller's memory, or EFAULT."""
        if self.caller.memory.write(hva, data) < len(data):
            raise Errno(errno.EFAULT)

    def copy_blob(self, hva: int, nbytes: int) -> bytes:
        """psp_copy_user_blob: EINVAL for none, or one that is too long."""
        if not hva or not 0 < nbytes <= BLOB_MAX_NBYTES:
            raise Errno(errno.EINVAL)
        return self.copy_from_user(hva, nbytes)


@dataclass
class SevOp(UserCopies):
    """The command as the kernel carries it out; ``error`` is the struct's in/out field."""

    vm: Vm
    caller: Caller
    firmware: Firmware
    data: int
    error: int
    sev_fd: int
    record: Record
    kernel_vms: list[Vm]
    room: memoryview  # the kernel's own: load() uses it again and again
    generation: Generation = "new"
    error_before: int = 0  # what ``error`` was before the latest firmware command

    def require_sev(self, *, es: bool = False) -> None:
        """sev_guest() and sev_es_guest(): ENOTTY for a VM that is none."""
        if not self.vm.active or (es and not self.vm.es):
            raise Errno(errno.ENOTTY)

    def reach_firmware(self, command: Callable[[], _Result]) -> _Result:
        """sev_do_cmd: a status becomes EIO and ``error``, which success sets to 0."""
        self.error_before = self.error
        return reach_firmware(self, command)

    def issue(self, command: Callable[[], _Result], fd: int | None = None) -> _Result:
        """sev_issue_cmd: as reach_firmware, through a ``/dev/sev`` descriptor of the caller's, or EBADF.

        Without ``fd`` it is the number that LAUNCH_START recorded, looked up in the table of whoever calls now.
        """
        if not self.caller.is_sev_device(self.vm.sev_fd if fd is None else fd):
            raise Errno(errno.EBADF)
        return self.reach_firmware(command)

    def pin(self, hva: int, nbytes: int, *, write: bool) -> list[Backing]:
        """sev_pin_memory for a whole range: EINVAL for none or one that wraps, ENOMEM where a page is missing.

        ENOMEM also for more than the caller may lock, together with what is pinned already (RLIMIT_MEMLOCK).
        """
        if nbytes == 0 or hva + nbytes >= _ADDRESS_END:
            raise Errno(errno.EINVAL)
        if not self.caller.may_lock(self.vm.pages_locked + npages(hva, nbytes)):
            raise Errno(errno.ENOMEM)
        pinned = self.caller.memory.backing(hva, nbytes)
        if sum(piece.nbytes for piece in pinned) < nbytes or (write and not all(p.writable for p in pinned)):
            raise Errno(errno.ENOMEM)
        return pinned

    def pin_some(self, hva: int, nbytes: int, *, write: bool) -> Backing:
        """The first physically contiguous piece of a range: pages pinned one by one as they are needed."""
        pinned = self.caller.memory.backing(hva, nbytes)
        if not pinned or (write and not pinned[0].writable):
            raise Errno(errno.ENOMEM)
        return pinned[0]

    def load(self, hva: int, nbytes: int) -> memoryview:
        """What pinned pages hold, until the next load; at most ``len(room)`` bytes.

        ENOMEM if they were not there after all (a hole in a file mapping, say).
        """
        return self.load_some(hva, nbytes, nbytes)

    def load_some(self, hva: int, nbytes: int, least: int = 1) -> memoryview:
        """As load, but only as far as whole pages are there, if they are ``least`` bytes."""
        buffer = self.room[:nbytes]
        done = self.caller.memory.readinto(hva, buffer)
        if done < least:
            raise Errno(errno.ENOMEM)
        return buffer[:done]

    def store(self, hva: int, data: bytes | bytearray | memoryview) -> None:
        """Into pinned pages; ENOMEM as for load."""
        self.store_some(hva, data, len(data))

    def store_some(self, hva: int, data: bytes | bytearray | memoryview, least: int = 1) -> int:
        """As store, but only as far as whole pages are there, if they are ``least`` bytes; returns how many."""
        done = self.caller.memory.write(hva, data)
        if done < least:
            # they would have been found missing when they were pinned, before the command was sent
            self.error = self.error_before
            raise Errno(errno.ENOMEM)
        return done


def npages(hva: int, nbytes: int) -> int:
    """How many pages a range touches."""
    return ((hva & _PAGE_MASK) + nbytes + _PAGE_MASK) // (_PAGE_MASK + 1)
