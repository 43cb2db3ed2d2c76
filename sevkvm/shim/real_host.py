"""SEV laid over the real ``/dev/kvm``: what is answered here, and what the kernel below answers itself."""

from __future__ import annotations

import errno
import os
from typing import Final

from sevkvm import native
from sevkvm.abi import kvm as abi
from sevkvm.shim import proc_fds
from sevkvm.shim.cpuid import with_sev
from sevkvm.shim.kernel import CONTEXT_CAPABILITIES, SEV_REQUESTS, Kernel
from sevkvm.shim.parking import Parking
from sevkvm.shim.real_kvm import RealVms
from sevkvm.shim.replay import Replay
from sevkvm.shim.supervised import SupervisedCaller
from sevkvm.shim.target import read_exactly
from sevkvm.shim.vm import Vm

KVM_PATH: Final = "/dev/kvm"
_CPUID_MAX_ENTRIES: Final = 256


class RealHost:
    """A host whose KVM is real and whose SEV is not."""

    paths: tuple[str, ...] = ()
    requests: tuple[int, ...] = (
        *SEV_REQUESTS,
        abi.KVM_CREATE_VM,
        abi.KVM_CREATE_VCPU,
        abi.KVM_ENABLE_CAP,
        abi.KVM_RUN,
        abi.KVM_GET_SUPPORTED_CPUID,
    )

    def __init__(self, kernel: Kernel, cbit_pos: int) -> None:
        self._kernel = kernel
        self._cbit_pos = cbit_pos
        self._vms = RealVms(kernel)
        self._replay = Replay(kernel)
        self.parking = Parking()
        self._kvm_fd = os.open(KVM_PATH, os.O_RDWR | os.O_CLOEXEC)

    def ioctl(self, caller: SupervisedCaller) -> None:
        """Answer it, park it, or let the kernel do it."""
        call = caller.call
        fd, request, argument = call.args[:3]
        if request in SEV_REQUESTS:
            self._sev(caller, fd, request, argument)
        elif request == abi.KVM_ENABLE_CAP:
            self._enable_cap(caller, fd, argument)
        elif request == abi.KVM_RUN:
            self._run(caller, fd)
        elif request == abi.KVM_GET_SUPPORTED_CPUID:
            self._supported_cpuid(caller, fd, argument)
        else:
            if request == abi.KVM_CREATE_VM:
                self._vms.creating_vm(caller.pid, caller.mm)
            elif vm := self._vms.vm_at(caller.tid, fd):
                self._vms.creating_vcpu(vm, caller.pid, caller.mm, argument)
            call.proceed()

    def _sev(self, caller: SupervisedCaller, fd: int, request: int, argument: int) -> None:
        vm = self._vms.vm_at(caller.tid, fd)
        if vm is None:
            caller.call.proceed()
            return
        kernel_vm = vm.vm
        self._replay.answer(
            kernel_vm, caller.call, lambda: self._kernel.vm_ioctl(kernel_vm, caller, request, argument)
        )

    def _enable_cap(self, caller: SupervisedCaller, fd: int, argument: int) -> None:
        raw = read_exactly(caller.memory, argument, abi.ENABLE_CAP_NBYTES)
        enable = None if raw is None else abi.EnableCap.unpack(raw)
        vm = None
        if enable is not None and enable.capability in CONTEXT_CAPABILITIES:
            vm = self._vms.vm_at(caller.tid, fd)
        if vm is None or enable is None:
            caller.call.proceed()
            return

        def vm_at(source_fd: int) -> Vm | None:
            source = self._vms.vm_at(caller.tid, source_fd)
            return None if source is None else source.vm

        caller.call.answer(self._kernel.enable_cap(vm.vm, caller, enable, vm_at))

    def _run(self, caller: SupervisedCaller, fd: int) -> None:
        vcpu = self._vms.vcpu_at(caller.tid, fd)
        if vcpu is None or not (vcpu.vm.vm.active or vcpu.vm.vm.dead):
            caller.call.proceed()
        elif vcpu.vm.space is not caller.mm or vcpu.vm.vm.dead:
            caller.call.answer(-errno.EIO)
        elif self.parking.holds(vcpu):
            self.parking.wait_for(vcpu, caller.call)
        else:
            self.parking.park(vcpu, caller.call)

    def _supported_cpuid(self, caller: SupervisedCaller, fd: int, argument: int) -> None:
        """The kernel's own answer with SEV added, in place where the leaf is there already."""
        if proc_fds.link(caller.tid, fd) != KVM_PATH:
            caller.call.proceed()
            return
        head = read_exactly(caller.memory, argument, 8)
        if head is None:
            caller.call.answer(-errno.EFAULT)
            return
        room = int.from_bytes(head[:4], "little")
        data = bytearray(abi.pack_cpuid2([], room=min(room, _CPUID_MAX_ENTRIES)))
        result = native.ioctl(self._kvm_fd, abi.KVM_GET_SUPPORTED_CPUID, native.address_of(data))
        if result == 0:
            entries = with_sev(abi.unpack_cpuid2(data), self._cbit_pos)
            answer = abi.pack_cpuid2(entries)
            if len(entries) > room:
                result = -errno.E2BIG
            elif caller.memory.write(argument, answer) < len(answer):
                result = -errno.EFAULT
        caller.call.answer(result)

    def open(self, path: str, flags: int) -> int | None:
        """None: the real device is opened by the kernel."""
        return None

    def link_of(self, identity: tuple[int, int]) -> str | None:
        """None: real files carry their real names."""
        return None

    def forget_dead(self) -> None:
        """Let VMs go that are closed."""
        for vcpu in self._vms.forget_dead():
            self.parking.forget(vcpu)

    def close(self) -> None:
        """Let everything go."""
        self._vms.close()
        os.close(self._kvm_fd)


def usable() -> bool:
    """May this user open the real ``/dev/kvm``, and is it KVM?"""
    try:
        fd = os.open(KVM_PATH, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return native.ioctl(fd, abi.KVM_GET_API_VERSION) == abi.KVM_API_VERSION
    finally:
        os.close(fd)
