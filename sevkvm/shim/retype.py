"""KVM_CREATE_VM of a SEV type on a kernel that knows none: the type is changed on its way in.

The VM must be made by the program itself: one that we make belongs to our address space, and every ioctl on it would
fail with EIO in the program for ever. A wrapper around the call in the program (a preloaded library) would do, but
misses static programs, other C libraries and raw system calls, so the thread is borrowed with ptrace for as long as the
call takes (csrc/sk_retype.h), about half a millisecond.

A thread that somebody traces already, such as a debugger, cannot be borrowed: its KVM_CREATE_VM fails with EBUSY,
which the kernel itself never answers here.
"""

from __future__ import annotations

import errno
from typing import Any, Final

from sevkvm.abi import kvm as abi
from sevkvm.native import Call, Status, ffi, lib
from sevkvm.shim.address_space import AddressSpace
from sevkvm.shim.notify import Notification, call_error

_BORROW_MS: Final = 2000
_RETURN_MS: Final = 2000  # the kernel makes a VM in less than one; then we ask again now and then


class Retyped:
    """A borrowed thread of process ``pid`` in its KVM_CREATE_VM; ``vm_type`` is what it asked for."""

    def __init__(self, pid: int, space: AddressSpace, tid: int, vm_type: int, raw: Any) -> None:
        self.pid = pid
        self.space = space
        self.tid = tid
        self.vm_type = vm_type
        self._raw = raw

    def result(self, *, wait: bool) -> int | None:
        """What the call returned; None if it has not yet. The thread stands still then. ProcessLookupError: it died."""
        call = Call()
        result = ffi.new("int64_t *")
        status = lib.sk_retype_wait(self._raw, _RETURN_MS if wait else 0, result, call.err)
        if status == Status.TIMEOUT:
            return None
        if status == Status.NO_PROCESS:
            raise ProcessLookupError
        if status:
            raise call_error(call)
        return int(result[0])

    def let_go(self) -> None:
        """Let the thread go on, after result()."""
        lib.sk_retype_end(self._raw)


class Retypes:
    """The threads that are borrowed now. All of it belongs to one thread of ours, as ptrace demands."""

    def __init__(self) -> None:
        self._borrowed: dict[int, Retyped] = {}

    def begin(self, notification: Notification, pid: int, space: AddressSpace) -> None:
        """Start the call again with the default type, or answer it with EBUSY."""
        call = Call()
        raw = ffi.new("struct sk_retype *")
        tid, vm_type = notification.tid, notification.args[2]
        status = lib.sk_retype_begin(
            tid, abi.KVM_CREATE_VM, abi.KVM_X86_DEFAULT_VM, _BORROW_MS, raw, call.err
        )
        if status == Status.OK:
            self._borrowed[tid] = Retyped(pid, space, tid, vm_type, raw)
        elif status != Status.NO_PROCESS:
            notification.answer(-errno.EBUSY)

    def take(self, tid: int) -> Retyped | None:
        """The borrowed thread of this id, whose call has come again; the caller sees it through."""
        return self._borrowed.pop(tid, None)

    def put_back(self, retyped: Retyped) -> None:
        """It has not returned yet."""
        self._borrowed[retyped.tid] = retyped

    def take_all(self) -> list[Retyped]:
        """All, to see which have returned, or died."""
        taken, self._borrowed = list(self._borrowed.values()), {}
        return taken
