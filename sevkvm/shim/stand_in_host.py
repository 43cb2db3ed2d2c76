"""A host without ``/dev/kvm``: every KVM call is answered here, by mini_kvm; vCPUs never run."""

from __future__ import annotations

import errno

from sevkvm.abi import kvm as abi
from sevkvm.shim.kernel import SEV_REQUESTS, Kernel
from sevkvm.shim.mini_vcpu import VcpuFile
from sevkvm.shim.notify import ALL_KVM_REQUESTS
from sevkvm.shim.parking import Parking
from sevkvm.shim.replay import Replay
from sevkvm.shim.stand_in import KVM_PATH, StandIn, StandInFile
from sevkvm.shim.supervised import SupervisedCaller, thread_exists


class StandInHost:
    """A host whose KVM is a stand-in."""

    nodes: dict[str, tuple[int, int]] = {KVM_PATH: (10, 232)}
    requests: tuple[int, ...] = (ALL_KVM_REQUESTS,)
    capabilities: tuple[int, ...] = ()

    def __init__(self, kernel: Kernel, cbit_pos: int) -> None:
        self._files = StandIn(kernel, cbit_pos)
        self._replay = Replay(kernel)
        # by thread: its call, and the answer
        self._unclaimed: dict[int, tuple[tuple[int, ...], StandInFile]] = {}
        self.parking = Parking()

    def ioctl(self, caller: SupervisedCaller) -> None:
        """Answer it, park it, or let the kernel refuse it on a file that is none of ours."""
        fd, request, argument = caller.call.args[:3]
        made = self._files.at(caller.tid, fd)
        if made is None:
            caller.call.proceed()
            return
        if isinstance(made.file, VcpuFile):
            if made.file.vm.mm is not caller.mm:
                caller.call.answer(-errno.EIO)
                return
            if self.parking.holds(made):
                self.parking.wait_for(made, caller.call)  # vcpu->mutex
                return
            if request == abi.KVM_RUN and made.file.vm.needs_init:
                caller.call.answer(-errno.EINVAL)
                return
            if request == abi.KVM_RUN:
                made.file.state.enter()
                self.parking.park(made, caller.call)
                return
        if (new := self._unclaimed.pop(caller.tid, None)) is not None:
            if new[0] == caller.call.args[:3]:
                self._hand_over(caller, new[1])
                return
            self._files.discard(new[1])
        if request == abi.KVM_CREATE_VM:
            self.forget_dead()
        self._answer(caller, made, request, argument)

    def _answer(self, caller: SupervisedCaller, made: StandInFile, request: int, argument: int) -> None:
        if request in SEV_REQUESTS:

            def execute() -> int:
                answer = self._files.kvm.ioctl(made.file, caller, request, argument)
                assert isinstance(answer, int)
                return answer

            self._replay.answer(made, caller.call, execute)
            return
        answer = self._files.kvm.ioctl(made.file, caller, request, argument)
        if isinstance(answer, int):
            caller.call.answer(answer)
            return
        self._hand_over(caller, self._files.add(answer))

    def _hand_over(self, caller: SupervisedCaller, new: StandInFile) -> None:
        new.claimed = caller.call.answer_fd(new.fd, cloexec=True)
        if not new.claimed:
            # a signal was faster: the call begins again, as often as it takes, or the thread is dead
            self._unclaimed[caller.tid] = caller.call.args[:3], new

    def open(self, path: str, flags: int) -> int | None:
        """A descriptor of ours for the stand-in's device."""
        return self._files.open(flags) if path == KVM_PATH else None

    def link_of(self, identity: tuple[int, int]) -> str | None:
        """What a descriptor's link in /proc is to read; None for a file that is none of ours."""
        return self._files.link_of(identity)

    def forget_dead(self) -> None:
        """Let VMs go that are closed, and files that nobody came back for."""
        self._replay.forget_dead()
        for tid, (_, new) in list(self._unclaimed.items()):
            if not thread_exists(tid):
                del self._unclaimed[tid]
                self._files.discard(new)
        gone = self._files.forget_dead()
        self._unclaimed = {tid: each for tid, each in self._unclaimed.items() if each[1] not in gone}
        for vcpu in gone:
            self.parking.forget(vcpu)

    def close(self) -> None:
        """Let everything go."""
        self._files.close()
