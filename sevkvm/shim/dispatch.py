"""Every trapped system call, and who answers it."""

from __future__ import annotations

import os
import signal
import sys
from typing import Final, Protocol

from sevkvm.shim import notify
from sevkvm.shim.address_space import AddressSpaces
from sevkvm.shim.host_files import HostFiles
from sevkvm.shim.kernel import Kernel
from sevkvm.shim.notify import Notification
from sevkvm.shim.parking import Parking
from sevkvm.shim.path_calls import PathCalls
from sevkvm.shim.replay import Replay
from sevkvm.shim.sev_node import DEVICE as SEV_DEVICE
from sevkvm.shim.sev_node import PATH as SEV_PATH
from sevkvm.shim.sev_node import SevNode
from sevkvm.shim.sev_op import KernelCorrupted
from sevkvm.shim.sevdev import SevDevice
from sevkvm.shim.supervised import Processes, SupervisedCaller
from sevkvm.shim.target import CallerGone

_TYPE_MASK: Final = 0xFF00  # of an ioctl's request number


class HostKvm(Protocol):
    """The KVM half of a host, real or standing in."""

    nodes: dict[str, tuple[int, int]]  # path to (major, minor) of the devices that it opens
    requests: tuple[int, ...]
    capabilities: tuple[int, ...]
    parking: Parking

    def ioctl(self, caller: SupervisedCaller) -> None:
        """Deal with a KVM ioctl."""
        ...

    def open(self, path: str, flags: int) -> int | None:
        """A descriptor of ours for one of ``nodes``."""
        ...

    def link_of(self, identity: tuple[int, int]) -> str | None:
        """The name of a file of ours."""
        ...

    def forget_dead(self) -> None:
        """Let go what is closed."""
        ...

    def close(self) -> None:
        """Let go of everything."""
        ...


class Dispatcher:
    """One pretend host, behind all listeners."""

    def __init__(self, kernel: Kernel, kvm: HostKvm, *, trap_stat: bool = True) -> None:
        self.kvm = kvm
        files = HostFiles(kernel.firmware, {SEV_PATH: SEV_DEVICE} | kvm.nodes)
        self.paths = files.paths
        self.filter = {
            "requests": (notify.ALL_SEV_REQUESTS, *kvm.requests),
            "capabilities": kvm.capabilities,
            "trap_readlink": True,
            "trap_stat": trap_stat,
        }
        self._node = SevNode()
        self._path_calls = PathCalls(self._node, files, kvm.open, kvm.link_of)
        self._device = SevDevice(kernel)
        self._replay = Replay(kernel)
        self._processes = Processes()
        self._spaces = AddressSpaces()

    def handle(self, call: Notification) -> None:
        """Answer a call, park it, or let the kernel carry it out."""
        try:
            if call.number == notify.SYS_IOCTL:
                self._ioctl(self._caller(call))
            else:
                self._path_calls.handle(self._caller(call))
        except KernelCorrupted as corrupted:
            print(f"sevkvm shim: {corrupted}; the process {call.tid} is killed", file=sys.stderr)
            if call.valid():
                os.kill(call.tid, signal.SIGKILL)
        except CallerGone:
            # dead, or we may not look into it: if it still waits, it is none of our business
            call.proceed()

    def tick(self) -> None:
        """What is due every few milliseconds while a call waits for a vCPU."""
        self.kvm.parking.tick(self.handle)

    def forget_dead(self) -> None:
        """What is due now and then: VMs closed, processes ended."""
        self.kvm.forget_dead()
        self._spaces.forget_dead()
        self._processes.forget_dead()
        self._replay.forget_dead()

    def close(self) -> None:
        """The host is gone."""
        self.kvm.close()
        self._spaces.close()
        self._node.close()

    def _caller(self, call: Notification) -> SupervisedCaller:
        pid = self._processes.of(call.tid)
        space = self._spaces.of(pid)
        if space is None:
            raise CallerGone
        return SupervisedCaller(call, pid, space, self._node)

    def _ioctl(self, caller: SupervisedCaller) -> None:
        call = caller.call
        fd, request, argument = call.args[:3]
        if request & _TYPE_MASK != notify.ALL_SEV_REQUESTS:
            self.kvm.ioctl(caller)
            return
        if not self._node.is_open_at(caller.tid, fd):
            call.proceed()
            return
        self.kvm.forget_dead()  # PLATFORM_STATUS counts guests
        writable = self._node.is_writable_at(caller.tid, fd)
        self._replay.answer(
            call.tid,
            call,
            lambda: self._device.ioctl(caller, request, argument, writable=writable),
        )
