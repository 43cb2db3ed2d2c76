"""SEV commands cannot be interrupted in the kernel, but here a signal can take the caller away before its answer.

The command has then been carried out, and the system call begins again by itself (or the program repeats it after
EINTR). Whoever comes back with the very call that was not delivered gets its result instead of a second command.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from sevkvm import errors, native
from sevkvm.abi import kvm as abi
from sevkvm.abi.sev import CMD_NBYTES
from sevkvm.shim.notify import Notification

_KEPT: Final = 256


class Replay:
    """Results that found nobody, by thread."""

    def __init__(self) -> None:
        self._undelivered: dict[int, tuple[object, int]] = {}

    def answer(self, call: Notification, execute: Callable[[], int]) -> None:
        """Carry a command out and answer with its result, or with the one that was not delivered."""
        kept = self._undelivered.pop(call.tid, None)
        repeated = kept is not None and kept[0] == _fingerprint(call)
        result = kept[1] if kept is not None and repeated else execute()
        if not call.answer(result):
            self._undelivered[call.tid] = _fingerprint(call), result
            for oldest in list(self._undelivered)[:-_KEPT]:
                del self._undelivered[oldest]


def _fingerprint(call: Notification) -> object:
    """The call with its command struct, which the command has left its mark in."""
    struct = b""
    if call.args[1] == abi.KVM_MEMORY_ENCRYPT_OP:
        try:
            struct = native.read(call.tid, call.args[2], CMD_NBYTES)
        except errors.SevKvmError:
            struct = b""  # NULL, or the thread is gone for good
    return call.number, call.args[:3], struct
