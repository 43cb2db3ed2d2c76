"""Seccomp user notification, typed: the filter a target installs on itself, and the calls it hands to us."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Final

from sevkvm import errors
from sevkvm.abi.x86 import PAGE_NBYTES
from sevkvm.native import Call, Status, ffi, lib

SYS_OPEN: Final = 2
SYS_STAT: Final = 4
SYS_LSTAT: Final = 6
SYS_IOCTL: Final = 16
SYS_ACCESS: Final = 21
SYS_READLINK: Final = 89
SYS_GETXATTR: Final = 191
SYS_LGETXATTR: Final = 192
SYS_LISTXATTR: Final = 194
SYS_LLISTXATTR: Final = 195
SYS_OPENAT: Final = 257
SYS_NEWFSTATAT: Final = 262
SYS_READLINKAT: Final = 267
SYS_FACCESSAT: Final = 269
SYS_STATX: Final = 332
SYS_OPENAT2: Final = 437
SYS_FACCESSAT2: Final = 439
ALL_KVM_REQUESTS: Final = 0xAE00  # to install(): every ioctl of KVM's type
ALL_SEV_REQUESTS: Final = 0x5300  # and of that of /dev/sev


class AlreadySupervised(errors.SevKvmError):
    """This process runs on a pretend SEV host already, or under another seccomp supervisor."""

    def __init__(self) -> None:
        super().__init__(
            "a seccomp supervisor is installed already",
            help="pretend SEV hosts do not nest: start the program without a second `sevkvm shim`",
        )


def install(
    requests: Sequence[int],
    *,
    capabilities: Sequence[int] = (),
    trap_readlink: bool = False,
    trap_stat: bool = False,
) -> int:
    """Filter the calling thread, and what it starts, for ever; returns the listener (close-on-exec).

    Of KVM_CHECK_EXTENSION only these ``capabilities`` are trapped.
    """
    call = Call()
    listener = ffi.new("int *")
    filter_: Any = ffi.new("struct sk_filter *")
    # cffi keeps only what a variable of ours names
    numbers = ffi.new("uint32_t[]", list(requests))
    extensions = ffi.new("uint32_t[]", list(capabilities))
    filter_.requests, filter_.nrequests = numbers, len(requests)
    filter_.capabilities, filter_.ncapabilities = extensions, len(capabilities)
    filter_.readlink, filter_.stat = trap_readlink, trap_stat
    status = lib.sk_notify_install(filter_, listener, call.err)
    if status == Status.BUSY:
        raise AlreadySupervised
    call.check(status)
    return int(listener[0])


def copy_fd(pid: int, fd: int) -> int | None:
    """A duplicate of another process's descriptor; None if there is none, or it may not be had."""
    call = Call(pid)
    copy = ffi.new("int *")
    if lib.sk_notify_copy_fd(pid, fd, copy, call.err):
        return None
    return int(copy[0])


class SharedPage:
    """The first page of a file, mapped for as long as this lives; no descriptor is kept."""

    def __init__(self, fd: int) -> None:
        call = Call()
        mapped = ffi.new("void **")
        call.check(lib.sk_notify_map(fd, PAGE_NBYTES, mapped, call.err))
        self._mapped: Any = mapped[0]
        self.bytes = memoryview(ffi.buffer(self._mapped, PAGE_NBYTES))

    def close(self) -> None:
        """Unmap it; ``bytes`` must not be used any more."""
        self.bytes.release()
        lib.sk_notify_unmap(self._mapped, PAGE_NBYTES)


class Notification:
    """A system call that waits for an answer. The methods say whether the caller was still waiting for it."""

    __slots__ = ("_listener", "args", "id", "number", "tid")

    def __init__(self, listener: Listener, raw: Any) -> None:
        self._listener = listener
        self.id = int(raw.id)
        self.tid = int(raw.tid)
        self.number = int(raw.number)
        args = tuple(raw.args)
        if self.number == SYS_IOCTL:
            # both are 32 bits to the kernel; a request number that went through an int comes sign-extended
            args = args[0] & 0xFFFFFFFF, args[1] & 0xFFFFFFFF, *args[2:]
        self.args: tuple[int, ...] = args

    def _delivered(self, status: int) -> bool:
        if status in (Status.OK, Status.NO_PROCESS):
            return bool(status == Status.OK)
        if self._listener.fd < 0:  # closed: whoever waited has got ENOSYS, or is dead
            return False
        raise call_error(self._listener.call)

    def valid(self) -> bool:
        """Does the caller still wait? If not, what was read of its memory is worthless."""
        listener = self._listener
        valid = listener.valid
        return self._delivered(lib.sk_notify_valid(listener.fd, self.id, valid, listener.call.err)) and bool(
            valid[0]
        )

    def answer(self, result: int) -> bool:
        """The call returns ``result``, or fails with errno ``-result``."""
        listener = self._listener
        value, os_errno = (result, 0) if result >= 0 else (0, -result)
        return self._delivered(lib.sk_notify_answer(listener.fd, self.id, value, os_errno, listener.call.err))

    def answer_fd(self, fd: int, *, cloexec: bool) -> bool:
        """The call returns a duplicate of our ``fd``."""
        listener = self._listener
        return self._delivered(lib.sk_notify_answer_fd(listener.fd, self.id, fd, cloexec, listener.call.err))

    def proceed(self) -> bool:
        """Let the kernel carry the call out itself."""
        listener = self._listener
        return self._delivered(lib.sk_notify_continue(listener.fd, self.id, listener.call.err))


def call_error(call: Call) -> errors.SevKvmError:
    """The exception of a failed call; also where the core's status says only that nobody is there."""
    failure = call.failure()
    return errors.SevKvmError(f"{failure.message}: {os.strerror(failure.errno)} [{failure.status.name}]")


class Listener:
    """The receiving end of one filter. Opens of other paths than ``paths`` never come out of it.

    ``call`` and ``valid`` are room for the core to write to, one for all calls: a listener belongs to one thread.
    """

    def __init__(self, fd: int, paths: Sequence[str]) -> None:
        self.fd = fd
        self.call = Call()
        self.valid: Any = ffi.new("int *")
        self._strings = [ffi.new("char[]", path.encode()) for path in paths]
        self._paths = ffi.new("char *[]", self._strings)
        self._raw: Any = ffi.new("struct sk_notification *")

    def fileno(self) -> int:
        """For select and its kin."""
        return self.fd

    def receive(self) -> Notification | None:
        """The next call, once the descriptor is readable; None if it was none of ours, or is withdrawn."""
        raw = self._raw
        status = lib.sk_notify_receive_ours(self.fd, self._paths, len(self._strings), raw, self.call.err)
        if status == Status.NO_PROCESS or (status == Status.OK and not raw.id):
            return None
        if status:
            raise call_error(self.call)
        return Notification(self, raw)

    def close(self) -> None:
        """Close it: whoever calls a trapped system call from now on gets ENOSYS."""
        os.close(self.fd)
        self.fd = -1
