"""SEV commands cannot be interrupted in the kernel, but here a signal can take the caller away before its answer.

The command has then been carried out, and the system call begins again by itself (or the program repeats it after
EINTR). Whoever comes back with the very call that was not delivered gets its result instead of a second command,
when the hardware would have been ready.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Final

from sevkvm import errors, native
from sevkvm.abi import kvm as abi
from sevkvm.abi.sev import CMD_NBYTES
from sevkvm.shim.kernel import Kernel
from sevkvm.shim.notify import Notification
from sevkvm.shim.supervised import thread_exists

_KEPT: Final = 256


@dataclass
class _Carried:
    """A command that was carried out; ``waits``: its answer is not due yet."""

    call: Notification
    fingerprint: object
    result: int
    waits: bool = True


class Replay:
    """Results that found nobody yet, by thread."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._carried: dict[int, _Carried] = {}

    def answer(self, queue: Hashable, call: Notification, execute: Callable[[], int]) -> None:
        """Carry a command out and answer with its result, or with the one that was not delivered.

        ``queue`` is whose other commands it waits behind: the VM's, say.
        """
        known = self._carried.pop(call.tid, None)
        if known is not None and known.fingerprint == _fingerprint(call):
            known.call = call
            self._carried[call.tid] = known
            if not known.waits:
                self._deliver(known)
            return
        result = execute()
        seconds = self._kernel.firmware.faults.take_seconds()
        if not seconds and call.answer(result):
            return
        carried = self._carried[call.tid] = _Carried(call, _fingerprint(call), result)
        self._kernel.pace.submit(queue, seconds, lambda: self._deliver(carried))

    def forget_dead(self) -> None:
        """Nobody comes back for the result of a thread that has ended."""
        for tid, carried in list(self._carried.items()):
            if not carried.waits and not thread_exists(tid):
                del self._carried[tid]

    def _deliver(self, carried: _Carried) -> None:
        carried.waits = False
        tid = carried.call.tid
        if self._carried.get(tid) is not carried:
            return  # the thread has begun another call: it will never come back for this one
        if carried.call.answer(carried.result):
            del self._carried[tid]
        for oldest in [each for each, other in self._carried.items() if not other.waits][:-_KEPT]:
            del self._carried[oldest]


def _fingerprint(call: Notification) -> object:
    """The call with its command struct, which the command has left its mark in."""
    struct = b""
    if call.args[1] == abi.KVM_MEMORY_ENCRYPT_OP:
        try:
            struct = native.read(call.tid, call.args[2], CMD_NBYTES)
        except errors.SevKvmError:
            struct = b""  # NULL, or the thread is gone for good
    return call.number, call.args[:3], struct
