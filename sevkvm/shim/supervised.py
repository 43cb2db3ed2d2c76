"""The thread behind a notification, as the kernel model's Caller: its memory and its descriptors."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from sevkvm import errors, native
from sevkvm.native import lib
from sevkvm.shim import limits
from sevkvm.shim.target import CallerGone

if TYPE_CHECKING:
    from sevkvm.shim.address_space import AddressSpace
    from sevkvm.shim.cipher import Bytes
    from sevkvm.shim.notify import Notification
    from sevkvm.shim.sev_node import SevNode
    from sevkvm.shim.target import Backing


class Processes:
    """Which process a thread belongs to, asked for every call and remembered."""

    def __init__(self) -> None:
        self._pids: dict[int, int] = {}

    def of(self, tid: int) -> int:
        """The process (thread group) of a thread; CallerGone if it has ended."""
        pid = self._pids.get(tid)
        # a thread id may have become somebody else's
        if pid is None or not lib.sk_is_thread_of(pid, tid):
            pid = self._pids[tid] = _process_of(tid)
        return pid

    def forget_dead(self) -> None:
        """Keep what is true still."""
        self._pids = {tid: pid for tid, pid in self._pids.items() if lib.sk_is_thread_of(pid, tid)}


def _process_of(tid: int) -> int:
    try:
        with open(f"/proc/{tid}/status", "rb") as file:
            for line in file:
                if line.startswith(b"Tgid:"):
                    return int(line[5:])
    except OSError:
        pass
    raise CallerGone


def thread_exists(tid: int) -> bool:
    """Is there, or may there be, such a thread?"""
    return os.path.exists(f"/proc/{tid}")  # noqa: PTH110  see proc_fds.py


class SupervisedCaller:
    """Caller and TargetMemory in one; good as long as the call is waiting, or at least the address space lives."""

    def __init__(self, call: Notification, pid: int, mm: AddressSpace, node: SevNode) -> None:
        self.call = call
        self.tid = call.tid
        self.pid = pid
        self.mm = mm
        self._node = node
        self._sev_fds: dict[int, bool] = {}

    @property
    def memory(self) -> SupervisedCaller:
        """Itself."""
        return self

    def is_sev_device(self, fd: int) -> bool:
        """Is the number an open ``/dev/sev`` in the caller's table? Looked up once for one call."""
        if fd not in self._sev_fds:
            self._sev_fds[fd] = self._node.is_open_at(self.tid, fd)
        return self._sev_fds[fd]

    def may_lock(self, npages: int) -> bool:
        """Caller.may_lock."""
        return limits.may_lock(self.pid, self.tid, npages)

    def readinto(self, hva: int, buffer: memoryview) -> int:
        """TargetMemory.readinto."""
        try:
            done = native.read_into(self.tid, hva, buffer)
        except errors.SevKvmError:
            raise CallerGone from None
        # the thread id could have become somebody else's: only now is it certain whose bytes these are
        self._require_alive()
        return done

    def write(self, hva: int, data: Bytes) -> int:
        """TargetMemory.write."""
        self._require_alive()
        try:
            native.write(self.tid, hva, data)
        except errors.MemoryFault as fault:
            return fault.address - hva
        except errors.SevKvmError:
            raise CallerGone from None
        return len(data)

    def backing(self, hva: int, nbytes: int) -> list[Backing]:
        """TargetMemory.backing."""
        return self.mm.backing(hva, nbytes)

    def keep(self, hva: int, nbytes: int) -> None:
        """TargetMemory.keep."""
        self.mm.keep(hva, nbytes)

    def release(self, hva: int, nbytes: int) -> None:
        """TargetMemory.release."""
        self.mm.release(hva, nbytes)

    def _require_alive(self) -> None:
        """A caller that a signal took away has its command completed all the same, as in the kernel."""
        if not self.call.valid() and not self.mm.alive():
            raise CallerGone
