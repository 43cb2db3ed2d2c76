"""Every trapped system call, and who answers it."""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
from typing import Final, Protocol

from sevkvm.shim import notify, proc_fds
from sevkvm.shim.address_space import AddressSpaces
from sevkvm.shim.kernel import Kernel
from sevkvm.shim.notify import Notification
from sevkvm.shim.parking import Parking
from sevkvm.shim.replay import Replay
from sevkvm.shim.sev_node import PATH as SEV_PATH
from sevkvm.shim.sev_node import SevNode
from sevkvm.shim.sev_op import KernelCorrupted
from sevkvm.shim.sevdev import SevDevice
from sevkvm.shim.supervised import Processes, SupervisedCaller
from sevkvm.shim.target import CallerGone

_PATH_NBYTES: Final = 64
_TYPE_MASK: Final = 0xFF00  # of an ioctl's request number
_FD_LINK: Final = re.compile(r"/proc/(self|thread-self|\d+)(?:/task/(\d+))?/fd/(\d+)")


class HostKvm(Protocol):
    """The KVM half of a host, real or standing in."""

    paths: tuple[str, ...]
    requests: tuple[int, ...]
    capabilities: tuple[int, ...]
    parking: Parking

    def ioctl(self, caller: SupervisedCaller) -> None:
        """Deal with a KVM ioctl."""
        ...

    def open(self, path: str, flags: int) -> int | None:
        """A descriptor of ours for one of ``paths``."""
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

    def __init__(self, kernel: Kernel, kvm: HostKvm) -> None:
        self.kvm = kvm
        self.paths = (SEV_PATH, *kvm.paths)
        self.filter = {
            "requests": (notify.ALL_SEV_REQUESTS, *kvm.requests),
            "capabilities": kvm.capabilities,
            "trap_readlink": True,
        }
        self._node = SevNode()
        self._device = SevDevice(kernel)
        self._replay = Replay(kernel)
        self._processes = Processes()
        self._spaces = AddressSpaces()

    def handle(self, call: Notification) -> None:
        """Answer a call, park it, or let the kernel carry it out."""
        try:
            if call.number == notify.SYS_IOCTL:
                self._ioctl(self._caller(call))
            elif call.number in (notify.SYS_READLINK, notify.SYS_READLINKAT):
                self._readlink(self._caller(call))
            else:
                self._open(self._caller(call))
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

    def _open(self, caller: SupervisedCaller) -> None:
        call = caller.call
        at = call.number != notify.SYS_OPEN
        path = _string(caller, call.args[1 if at else 0])
        flags = call.args[2 if at else 1] & 0xFFFFFFFF
        if call.number == notify.SYS_OPENAT2:  # struct open_how begins with the flags
            how = bytearray(8)
            if caller.readinto(flags_hva := call.args[2], memoryview(how)) < 8 or not flags_hva:
                call.proceed()
                return
            flags = int.from_bytes(how, "little")
        fd = self._node.open(flags) if path == SEV_PATH else self.kvm.open(path, flags)
        if fd is None:
            call.proceed()
            return
        try:
            call.answer_fd(fd, cloexec=bool(flags & os.O_CLOEXEC))
        finally:
            os.close(fd)

    def _readlink(self, caller: SupervisedCaller) -> None:
        call = caller.call
        arguments = call.args if call.number == notify.SYS_READLINK else call.args[1:]
        path = _string(caller, arguments[0])
        if call.number == notify.SYS_READLINKAT and path.isdigit():
            path = f"{proc_fds.link(caller.tid, call.args[0] & 0xFFFFFFFF)}/{path}"
        name = self._link_name(caller, path)
        if name is None:
            call.proceed()
            return
        text = name.encode()[: arguments[2]]
        call.answer(len(text) if caller.write(arguments[1], text) == len(text) else -errno.EFAULT)

    def _link_name(self, caller: SupervisedCaller, path: str) -> str | None:
        match = _FD_LINK.fullmatch(path)
        if match is None:
            return None
        process, task, fd = match.groups()
        owner = {"self": str(caller.pid), "thread-self": str(caller.tid)}.get(process, process)
        identity = proc_fds.identity(int(task or owner), int(fd))
        if identity is None or int(owner) == os.getpid():
            return None  # our own references are not for anybody who searches /proc for VMs
        return SEV_PATH if identity == self._node.identity else self.kvm.link_of(identity)


def _string(caller: SupervisedCaller, hva: int) -> str:
    """The path at ``hva``, if it is no longer than those that matter here; else some other text."""
    buffer = bytearray(_PATH_NBYTES)
    length = caller.readinto(hva, memoryview(buffer))
    return bytes(buffer[:length]).split(b"\0")[0].decode(errors="replace")
