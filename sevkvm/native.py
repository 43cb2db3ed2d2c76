"""The typed face of the C core: the only importer of the compiled module.

One function, :func:`check`, turns the core's status into an exception.
"""

from __future__ import annotations

import mmap
import os
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Any, Final

from sevkvm import errors
from sevkvm._native import ffi as ffi
from sevkvm._native import lib as lib

_PAGE_NBYTES = 4096


class Status(IntEnum):
    """``enum sk_status`` of csrc/sk_status.h, in its order."""

    OK = 0
    OS = 1
    NO_PROCESS = 2
    PERMISSION = 3
    TRACED = 4
    TIMEOUT = 5
    NO_GADGET = 6
    UNSUPPORTED = 7
    WRONG_THREAD = 8
    BUSY = 9
    LOST = 10
    FAULT = 11
    INVALID = 12
    SANDBOX = 13


PTRACE_HELP = (
    "run sevkvm as root or as the VMM's own user, in the VMM's pid namespace; "
    "check /proc/sys/kernel/yama/ptrace_scope and that no other debugger is attached"
)

SANDBOX_HELP = (
    "it was left as it was: what its filter forbids would have killed it; root (CAP_SYS_ADMIN), itself under no "
    "filter, may read it; --via mirror does not enter the VMM; else change its sandbox, or start it without"
)


@dataclass(frozen=True)
class NativeFailure:
    """What ``struct sk_error`` said."""

    status: Status
    errno: int
    address: int
    message: str


def exception_for(failure: NativeFailure, *, pid: int | None = None) -> errors.SevKvmError:
    """Build the exception that fits a failure of the core."""
    text = failure.message
    if failure.errno:
        text += f": {os.strerror(failure.errno)}"
    match failure.status:
        case Status.NO_PROCESS | Status.LOST:
            return errors.TargetGone(text, pid=pid, help="the VMM ended; `sevkvm list` shows what runs now")
        case Status.PERMISSION:
            return errors.AttachError(text, pid=pid, help=PTRACE_HELP)
        case Status.TRACED:
            return errors.AttachError(text, pid=pid, help="detach the other debugger first")
        case Status.TIMEOUT:
            return errors.TargetTimeout(
                text, help="the VMM may be overloaded or stuck; it was left as it was"
            )
        case Status.NO_GADGET | Status.UNSUPPORTED:
            return errors.AttachError(
                text,
                pid=pid,
                help="this VMM cannot host a deputy thread (musl, no C library, or shadow stacks): QEMU and glibc can",
            )
        case Status.SANDBOX:
            return errors.AttachError(text, pid=pid, help=SANDBOX_HELP)
        case Status.FAULT:
            return errors.MemoryFault("hva", failure.address, reason=failure.message)
        case _:
            return errors.SevKvmError(f"{text} [{failure.status.name}]")


class Call:
    """One call into the core: hands out ``err`` and raises what it says."""

    __slots__ = ("err", "pid")

    def __init__(self, pid: int | None = None) -> None:
        self.err: Any = ffi.new("struct sk_error *")
        self.pid = pid

    def failure(self) -> NativeFailure:
        """The last failure as data."""
        message = ffi.string(self.err.message)
        assert isinstance(message, bytes)
        return NativeFailure(
            Status(self.err.status), self.err.os_errno, self.err.address, message.decode(errors="replace")
        )

    def check(self, status: int) -> None:
        """Raise unless status is ``SK_OK``."""
        if status:
            raise exception_for(self.failure(), pid=self.pid)


def status_name(status: int) -> str:
    """The C name of a status, for example ``SK_ERR_TIMEOUT``."""
    name = ffi.string(lib.sk_status_name(status))
    assert isinstance(name, bytes)
    return name.decode()


def read_into(pid: int, hva: int, buffer: bytearray | memoryview) -> int:
    """Copy process memory at ``hva`` into ``buffer``; return the bytes copied before the first unreadable one.

    Raises TargetGone or AttachError when the process as a whole cannot be read.
    """
    call = Call(pid)
    done = ffi.new("size_t *")
    # Released here and not by the garbage collector: a signal that raises leaves this frame in a traceback, and a
    # collected memoryview that is still borrowed crashes CPython (3.11 memory_clear).
    with ffi.from_buffer(buffer, require_writable=True) as view:
        status = lib.sk_read(pid, hva, view, len(view), done, call.err)
    if status not in (Status.OK, Status.FAULT):
        call.check(status)
    return int(done[0])


def read(pid: int, hva: int, nbytes: int) -> bytes:
    """Exactly ``nbytes`` of process memory, or MemoryFault naming the first unreadable ``hva``."""
    buffer = bytearray(nbytes)
    done = read_into(pid, hva, buffer)
    if done < nbytes:
        raise errors.MemoryFault("hva", hva + done, reason=f"process {pid} has no readable byte there")
    return bytes(buffer)


def read_pages(pid: int, hvas: Sequence[int]) -> list[bytes | None]:
    """The 4096 bytes of process memory at each of ``hvas``, in order; None where they cannot all be read.

    Raises TargetGone or AttachError when the process as a whole cannot be read.
    """
    call = Call(pid)
    addresses = array("Q", hvas)
    out, readable = bytearray(len(addresses) * _PAGE_NBYTES), bytearray(len(addresses))
    call.check(
        lib.sk_read_pages(
            pid,
            ffi.from_buffer("uint64_t[]", addresses),
            len(addresses),
            ffi.from_buffer(out, require_writable=True),
            ffi.from_buffer("uint8_t[]", readable, require_writable=True),
            call.err,
        )
    )
    view = memoryview(out)
    offsets = range(0, len(out), _PAGE_NBYTES)
    return [
        bytes(view[offset : offset + _PAGE_NBYTES]) if whole else None
        for offset, whole in zip(offsets, readable, strict=True)
    ]


def write(pid: int, hva: int, data: bytes | bytearray | memoryview) -> None:
    """Write process memory, respecting its page protection; MemoryFault if it does not all fit."""
    call = Call(pid)
    done = ffi.new("size_t *")
    with ffi.from_buffer(data) as view:
        status = lib.sk_write(pid, hva, view, len(view), done, call.err)
    call.check(status)


def same_file(pid1: int, fd1: int, pid2: int, fd2: int) -> bool:
    """Do two descriptors name the same open file (kcmp(2), KCMP_FILE)?"""
    call = Call(pid1)
    same = ffi.new("int *")
    call.check(lib.sk_same_file(pid1, fd1, pid2, fd2, same, call.err))
    return bool(same[0])


def same_memory(pid1: int, pid2: int) -> bool:
    """Do two tasks share one address space (kcmp(2), KCMP_VM)?"""
    call = Call(pid1)
    same = ffi.new("int *")
    call.check(lib.sk_same_memory(pid1, pid2, same, call.err))
    return bool(same[0])


def cpuid(leaf: int, subleaf: int = 0) -> tuple[int, int, int, int]:
    """CPUID of this processor: (eax, ebx, ecx, edx); zeros for a leaf it does not have."""
    out = ffi.new("uint32_t[4]")
    lib.sk_cpuid(leaf, subleaf, out)
    return out[0], out[1], out[2], out[3]


def ioctl(fd: int, request: int, argument: int = 0) -> int:
    """ioctl(2) on this thread with a raw argument: the kernel's result, or -errno."""
    return int(lib.sk_ioctl(fd, request, argument))


def address_of(buffer: bytearray | mmap.mmap) -> int:
    """The hva of a buffer of our own; it stays valid only while the buffer lives and does not move."""
    return int(ffi.cast("uintptr_t", ffi.from_buffer(buffer)))


class DeputyHandle:
    """Owns a ``struct sk_deputy *``."""

    __slots__ = ("pid", "pointer")

    def __init__(self, pid: int, pointer: object) -> None:
        self.pid = pid
        self.pointer = pointer


def deputy_open(
    pid: int, scratch_nbytes: int, timeout_ms: int, *, trust_sandbox: bool = False
) -> DeputyHandle:
    """Add a deputy thread to process ``pid``. ``trust_sandbox``: go on under a seccomp filter that we may not read."""
    call = Call(pid)
    out = ffi.new("struct sk_deputy **")
    status = lib.sk_deputy_open(pid, scratch_nbytes, timeout_ms, trust_sandbox, out, call.err)
    if status == Status.NO_PROCESS:
        raise errors.VmNotFound(f"no process {pid}", help="`sevkvm list` shows the VMs of this host")
    call.check(status)
    return DeputyHandle(pid, out[0])


def deputy_check(pid: int) -> None:
    """Raise what ``deputy_open`` would refuse, as far as it shows without stopping or changing anything."""
    call = Call(pid)
    call.check(lib.sk_deputy_check(pid, call.err))


def deputy_info(handle: DeputyHandle) -> dict[str, int]:
    """The fields of ``struct sk_deputy_info``."""
    out = ffi.new("struct sk_deputy_info *")
    lib.sk_deputy_info(handle.pointer, out)
    return {name: getattr(out, name) for name, _ in ffi.typeof("struct sk_deputy_info").fields}


def deputy_start(handle: DeputyHandle, fd: int, request: int, argument: int) -> None:
    """Start an ioctl on the deputy."""
    call = Call(handle.pid)
    call.check(lib.sk_deputy_start(handle.pointer, fd, request, argument, call.err))


def deputy_wait(handle: DeputyHandle, timeout_ms: int) -> int | None:
    """The ioctl's raw result (>= 0 or -errno), or None while it is in flight."""
    call = Call(handle.pid)
    result = ffi.new("int64_t *")
    status = lib.sk_deputy_wait(handle.pointer, timeout_ms, result, call.err)
    if status == Status.TIMEOUT:
        return None
    call.check(status)
    return int(result[0])


def deputy_hold(handle: DeputyHandle, tids: list[int], timeout_ms: int) -> int:
    """Hold threads; how many are held now."""
    call = Call(handle.pid)
    held = ffi.new("size_t *")
    call.check(
        lib.sk_deputy_hold(handle.pointer, ffi.new("int32_t[]", tids), len(tids), timeout_ms, held, call.err)
    )
    return int(held[0])


def deputy_release(handle: DeputyHandle) -> None:
    """Let held threads go."""
    lib.sk_deputy_release(handle.pointer)


def deputy_close(handle: DeputyHandle, timeout_ms: int) -> None:
    """End the deputy and free the handle, which must not be used again."""
    lib.sk_deputy_close(handle.pointer, timeout_ms)
    handle.pointer = ffi.NULL


def copy_fd(pid: int, fd: int) -> int:
    """A copy of another process's descriptor (pidfd_getfd(2)), close-on-exec; AttachError without ptrace rights."""
    call = Call(pid)
    copy = ffi.new("int *")
    call.check(lib.sk_notify_copy_fd(pid, fd, copy, call.err))
    return int(copy[0])


class WorkerHandle:
    """Owns a ``struct sk_worker *``."""

    __slots__ = ("pointer",)

    def __init__(self, pointer: object) -> None:
        self.pointer = pointer


def worker_open(keep: Sequence[int]) -> WorkerHandle:
    """Start a thread of ours with a descriptor table of its own that has ``keep`` and nothing else."""
    call = Call()
    out = ffi.new("struct sk_worker **")
    call.check(lib.sk_worker_open(ffi.new("int32_t[]", list(keep)), len(keep), out, call.err))
    return WorkerHandle(out[0])


def worker_start(handle: WorkerHandle, number: int, *args: int) -> None:
    """Begin a system call, by its number, with up to three arguments."""
    call = Call()
    args += (0,) * (3 - len(args))
    call.check(lib.sk_worker_start(handle.pointer, number, *args, call.err))


def worker_wait(handle: WorkerHandle, timeout_ms: int) -> int | None:
    """The call's raw result (>= 0 or -errno), or None while it is in flight."""
    call = Call()
    result = ffi.new("int64_t *")
    status = lib.sk_worker_wait(handle.pointer, timeout_ms, result, call.err)
    if status == Status.TIMEOUT:
        return None
    call.check(status)
    return int(result[0])


def worker_close(handle: WorkerHandle, timeout_ms: int) -> bool:
    """End the thread; False if it goes by itself later, because a call does not come back.

    The handle must not be used again; what a call in flight works on must stay mapped.
    """
    pointer, handle.pointer = handle.pointer, ffi.NULL
    return bool(lib.sk_worker_close(pointer, timeout_ms, ffi.NULL) == Status.OK)


class EntryFlag(IntFlag):
    """``SK_PRESENT ...`` of csrc/sk_walk.h: flags of a page-table entry, nothing inherited.

    ``LEVEL1 ...`` of csrc/sk_list.h: the level a listed leaf stands at, so that sizes can be told apart.
    """

    PRESENT = 1 << 0
    WRITABLE = 1 << 1
    USER = 1 << 2
    NX = 1 << 3
    LEAF = 1 << 4
    PRIVATE = 1 << 5
    RESERVED = 1 << 6
    LEVEL1 = 1 << 7
    LEVEL2 = 1 << 8
    LEVEL3 = 1 << 9


PAGE_DIGEST_NBYTES: Final = 16
PAGE_DIGEST_KEY_NBYTES: Final[int] = lib.SK_DIGEST_KEY_NBYTES


def page_digests(key: bytes, pages: bytes | memoryview) -> bytes:
    """``PAGE_DIGEST_NBYTES`` for each page of 4096 bytes, by which equal pages are known.

    key: ``PAGE_DIGEST_KEY_NBYTES`` random bytes; who does not know them cannot make two pages agree. Other threads run
    meanwhile. ValueError for a key of another length or a part of a page.
    """
    npages, rest = divmod(len(pages), 4096)
    if rest or len(key) != PAGE_DIGEST_KEY_NBYTES:
        raise ValueError(f"not whole pages, or not a key: {len(pages)} and {len(key)} bytes")
    digests = bytearray(npages * PAGE_DIGEST_NBYTES)
    lib.sk_digest_pages(ffi.from_buffer(key), ffi.from_buffer(pages), npages, ffi.from_buffer(digests))
    return bytes(digests)


def zero_runs(pages: bytes | bytearray | memoryview) -> list[int]:
    """How many pages of 4096 bytes hang together: with data, all zero, with data and so on; only the first may be 0.

    A rest of less than a page is not looked at.
    """
    npages = len(pages) // 4096
    runs = array("I", bytes(4 * (npages + 1)))
    count = lib.sk_zero_runs(
        ffi.from_buffer(pages), npages, ffi.from_buffer("uint32_t *", runs, require_writable=True)
    )
    return runs[:count].tolist()
