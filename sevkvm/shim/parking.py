"""vCPUs of encrypted guests never run: their KVM_RUN waits here until its thread is interrupted or dies.

As in the kernel, a signal ends KVM_RUN with EINTR and exit reason KVM_EXIT_INTR, ``immediate_exit`` ends it at
once, and whoever else wants the vCPU meanwhile waits for its mutex.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from typing import Final, Protocol

from sevkvm.shim.notify import Notification, SharedPage

_IMMEDIATE_EXIT_OFFSET: Final = 1  # struct kvm_run, include/uapi/linux/kvm.h
_EXIT_REASON_OFFSET: Final = 8
_EXIT_INTR: Final = 10


class Parkable(Protocol):
    """A vCPU with its ``struct kvm_run``; ``run`` is None where it cannot be mapped."""

    @property
    def run(self) -> SharedPage | None:
        """The first page of what the VMM maps of the vCPU."""
        ...


class Parking:
    """The waiting calls of one host."""

    def __init__(self) -> None:
        self._parked: dict[Parkable, Notification] = {}
        self._waiting: list[tuple[Parkable, Notification]] = []

    @property
    def has_waiting(self) -> bool:
        """Does a call wait for a vCPU that is parked? Then tick() is wanted every few milliseconds."""
        return bool(self._waiting)

    def holds(self, vcpu: Parkable) -> bool:
        """Is a thread in KVM_RUN with this vCPU?"""
        call = self._parked.get(vcpu)
        return call is not None and call.valid()

    def park(self, vcpu: Parkable, call: Notification) -> None:
        """KVM_RUN: answered with EINTR at once where the kernel would, else not at all."""
        earlier = self._parked.pop(vcpu, None)
        # A call that was interrupted and begins again is the kernel restarting what KVM_RUN never restarts.
        restarted = earlier is not None and earlier.tid == call.tid
        run = vcpu.run
        if restarted or (run is not None and run.bytes[_IMMEDIATE_EXIT_OFFSET]):
            if run is not None:
                struct.pack_into("<I", run.bytes, _EXIT_REASON_OFFSET, _EXIT_INTR)
            call.answer(-errno.EINTR)
        else:
            self._parked[vcpu] = call

    def wait_for(self, vcpu: Parkable, call: Notification) -> None:
        """Hold a call back until the vCPU is out of KVM_RUN."""
        self._waiting.append((vcpu, call))

    def tick(self, handle: Callable[[Notification], None]) -> None:
        """Let the calls go on whose vCPU has come out; forget those that were given up."""
        waiting, self._waiting = self._waiting, []
        for vcpu, call in waiting:
            if not call.valid():
                continue
            if self.holds(vcpu):
                self._waiting.append((vcpu, call))
            else:
                handle(call)

    def forget(self, vcpu: Parkable) -> None:
        """The vCPU is gone."""
        self._parked.pop(vcpu, None)
