"""SEV laid over the real ``/dev/kvm``: what is answered here, and what the kernel below answers itself."""

from __future__ import annotations

import errno
from typing import Final

from sevkvm.abi import kvm as abi
from sevkvm.shim import capabilities, proc_fds, sealed_vcpu
from sevkvm.shim.kernel import CONTEXT_CAPABILITIES, SEV_REQUESTS, Kernel
from sevkvm.shim.parking import Parking
from sevkvm.shim.real_kvm import RealVms
from sevkvm.shim.real_system import KVM_PATH, RealSystem
from sevkvm.shim.replay import Replay
from sevkvm.shim.retype import Retyped, Retypes
from sevkvm.shim.sev_op import Errno
from sevkvm.shim.supervised import SupervisedCaller
from sevkvm.shim.target import read_exactly
from sevkvm.shim.vm import Vm

_SEV_VM_TYPES: Final = (abi.KVM_X86_SEV_VM, abi.KVM_X86_SEV_ES_VM, abi.KVM_X86_SNP_VM)


class RealHost:
    """A host whose KVM is real and whose SEV is not."""

    nodes: dict[str, tuple[int, int]] = {}
    requests: tuple[int, ...] = (
        *SEV_REQUESTS,
        abi.KVM_CREATE_VM,
        abi.KVM_CREATE_VCPU,
        abi.KVM_ENABLE_CAP,
        abi.KVM_RUN,
        *sealed_vcpu.REQUESTS,
        abi.KVM_GET_SUPPORTED_CPUID,
        abi.KVM_HAS_DEVICE_ATTR,
        abi.KVM_GET_DEVICE_ATTR,
    )
    capabilities: tuple[int, ...] = capabilities.CAPABILITIES

    def __init__(self, kernel: Kernel, cbit_pos: int) -> None:
        self._kernel = kernel
        self._system = RealSystem(kernel.firmware, cbit_pos)
        self._vms = RealVms(kernel)
        self._retypes = Retypes()
        self._replay = Replay(kernel)
        self.parking = Parking()

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
        elif request in sealed_vcpu.REQUESTS:
            self._registers(caller, fd, request, argument)
        elif request == abi.KVM_CREATE_VM:
            self._create_vm(caller, fd, argument)
        elif request == abi.KVM_CREATE_VCPU:
            if vm := self._vms.vm_at(caller.tid, fd):
                self._vms.creating_vcpu(vm, caller.pid, caller.mm, argument)
            call.proceed()
        else:
            self._system_ioctl(caller, fd, request, argument)

    def _system_ioctl(self, caller: SupervisedCaller, fd: int, request: int, argument: int) -> None:
        """What is asked of ``/dev/kvm`` itself, or of a VM in its place."""
        ours = proc_fds.link(caller.tid, fd) == KVM_PATH
        if request == abi.KVM_CHECK_EXTENSION and not ours:
            vm = self._vms.vm_at(caller.tid, fd)
            ours = vm is not None and vm.space is caller.mm
        answer = self._system.ioctl(caller.memory, request, argument) if ours else None
        if answer is None:
            caller.call.proceed()
        else:
            caller.call.answer(answer)

    def _create_vm(self, caller: SupervisedCaller, fd: int, vm_type: int) -> None:
        call = caller.call
        retyped = self._retypes.take(call.tid)
        if retyped is not None:
            call.proceed()
            self._see_through(retyped, wait=True)
        elif proc_fds.link(caller.tid, fd) != KVM_PATH:
            call.proceed()
        elif capabilities.is_sev_vm_type(self._kernel.firmware, vm_type):
            self._retypes.begin(call, caller.pid, caller.mm)
        elif vm_type in _SEV_VM_TYPES:  # whatever the hardware below can do
            call.answer(-errno.EINVAL)
        else:
            self._vms.creating_vm(caller.pid, caller.mm)
            call.proceed()

    def _see_through(self, retyped: Retyped, *, wait: bool) -> None:
        """The VM is made, or will be: take it up before its maker can close it again."""
        try:
            fd = retyped.result(wait=wait)
        except ProcessLookupError:
            return
        if fd is None:
            self._retypes.put_back(retyped)
            return
        try:
            if fd >= 0:
                self._vms.created_vm(retyped.pid, retyped.space, fd, retyped.vm_type)
        finally:
            retyped.let_go()

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
        if vcpu is None or not (vcpu.vm.vm.active or vcpu.vm.vm.needs_init or vcpu.vm.vm.dead):
            caller.call.proceed()
        elif vcpu.vm.space is not caller.mm or vcpu.vm.vm.dead:
            caller.call.answer(-errno.EIO)
        elif vcpu.vm.vm.needs_init:
            caller.call.answer(-errno.EINVAL)
        elif self.parking.holds(vcpu):
            self.parking.wait_for(vcpu, caller.call)
        else:
            vcpu.state.enter()
            self.parking.park(vcpu, caller.call)

    def _registers(self, caller: SupervisedCaller, fd: int, request: int, argument: int) -> None:
        vcpu = self._vms.vcpu_at(caller.tid, fd) if self._vms.any_encrypted else None
        if vcpu is None or not (vcpu.vm.vm.active or vcpu.vm.vm.dead):
            caller.call.proceed()
        elif vcpu.vm.space is not caller.mm or vcpu.vm.vm.dead:
            caller.call.answer(-errno.EIO)
        elif self.parking.holds(vcpu):
            self.parking.wait_for(vcpu, caller.call)  # vcpu->mutex
        else:
            try:
                answer = sealed_vcpu.ioctl(vcpu.vm.vm, vcpu.state, caller.memory, request, argument)
            except Errno as error:
                answer = -error.errno
            if answer is None:
                caller.call.proceed()
            else:
                caller.call.answer(answer)

    def open(self, path: str, flags: int) -> int | None:
        """None: the real device is opened by the kernel."""
        return None

    def link_of(self, identity: tuple[int, int]) -> str | None:
        """None: real files carry their real names."""
        return None

    def forget_dead(self) -> None:
        """Let VMs go that are closed, and see through what took long."""
        self._replay.forget_dead()
        for retyped in self._retypes.take_all():
            self._see_through(retyped, wait=False)
        for vcpu in self._vms.forget_dead():
            self.parking.forget(vcpu)

    def close(self) -> None:
        """Let everything go."""
        self._vms.close()
        self._system.close()
