"""VMs of the real ``/dev/kvm``, recognised behind the descriptors of the supervised processes.

The kernel tells neither which VM a descriptor is nor which VM a vCPU belongs to. So KVM_CREATE_VM and
KVM_CREATE_VCPU are seen on their way in, the new file is found in the creator's table afterwards, and a reference
of ours keeps its identity (kcmp(2) says equal) until the creator has closed it or ended.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from sevkvm import errors
from sevkvm.shim import proc_fds
from sevkvm.shim.address_space import AddressSpace
from sevkvm.shim.kept_file import KeptFile
from sevkvm.shim.kernel import Kernel
from sevkvm.shim.notify import SharedPage, copy_fd
from sevkvm.shim.vm import Vcpu, Vm

_VM_LINK: Final = "anon_inode:kvm-vm"
_VCPU_LINK: Final = "anon_inode:kvm-vcpu:"
_MAX_CREATED: Final = 256  # calls that failed leave one behind until their process ends


@dataclass(eq=False)
class RealVcpu:
    """A vCPU of a real VM."""

    vm: RealVm
    state: Vcpu
    file: KeptFile
    run: SharedPage | None


@dataclass(eq=False)
class RealVm:
    """A real VM; ``space`` is the address space that created it."""

    vm: Vm
    space: AddressSpace
    file: KeptFile
    vcpus: list[RealVcpu] = field(default_factory=list)


@dataclass
class _Created:
    """A KVM_CREATE_VM or _VCPU whose file is not found yet. ``link`` is what it will be called."""

    pid: int
    space: AddressSpace
    link: str
    vm: RealVm | None = None


class RealVms:
    """All VMs that the supervised processes made."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._vms: list[RealVm] = []
        self._created: list[_Created] = []

    def creating_vm(self, pid: int, space: AddressSpace) -> None:
        """KVM_CREATE_VM is about to happen."""
        self.forget_dead()
        self._find_created()
        self._created.append(_Created(pid, space, _VM_LINK))

    def created_vm(self, pid: int, space: AddressSpace, fd: int, vm_type: int) -> None:
        """KVM_CREATE_VM of a type that only this host has was answered with ``fd``, which nobody can close yet."""
        copy = copy_fd(pid, fd)
        if copy is not None:
            self._vms.append(RealVm(self._kernel.create_vm(space, vm_type), space, KeptFile(copy)))

    def creating_vcpu(self, vm: RealVm, pid: int, space: AddressSpace, index: int) -> None:
        """KVM_CREATE_VCPU is about to happen."""
        self._find_created()
        self._created.append(_Created(pid, space, f"{_VCPU_LINK}{index}", vm))

    @property
    def any_encrypted(self) -> bool:
        """Is there a VM that this host does anything for? Those that are closed count until they are noticed."""
        return any(vm.vm.active or vm.vm.dead for vm in self._vms)

    def vm_at(self, tid: int, fd: int) -> RealVm | None:
        """The VM behind a descriptor; None if it is no VM, or one from outside."""
        found = self._known_vm(tid, fd)
        if found is None and self._created and proc_fds.link(tid, fd) == _VM_LINK:
            self._find_created()
            found = self._known_vm(tid, fd)
        elif found is not None and any(created.vm is found for created in self._created):
            self._find_created()  # commands depend on which vCPUs there are
        return found

    def vcpu_at(self, tid: int, fd: int) -> RealVcpu | None:
        """The vCPU behind a descriptor; None if it is none of ours."""
        found = self._known_vcpu(tid, fd)
        if found is None and self._created:
            self._find_created()
            found = self._known_vcpu(tid, fd)
        return found

    def forget_dead(self) -> list[RealVcpu]:
        """Let VMs go whose creator has closed them or ended; returns the vCPUs that went with them."""
        self._created = [each for each in self._created if each.space.alive()]
        gone: list[RealVcpu] = []
        for vm in self._vms[:]:
            if not (vm.space.alive() and self._is_open(vm)):
                gone += vm.vcpus
                self._drop(vm)
        return gone

    def close(self) -> None:
        """Let all go."""
        self._created.clear()
        for vm in self._vms[:]:
            self._drop(vm)

    def _drop(self, vm: RealVm) -> None:
        self._vms.remove(vm)
        self._kernel.destroy_vm(vm.vm)
        for hva, nbytes in vm.vm.regions:
            vm.space.release(hva, nbytes)
        for vcpu in vm.vcpus:
            if vcpu.run is not None:
                vcpu.run.close()
            vcpu.file.close()
        vm.file.close()

    def _known_vm(self, tid: int, fd: int) -> RealVm | None:
        return next((vm for vm in self._vms if vm.file.is_at(tid, fd)), None)

    def _known_vcpu(self, tid: int, fd: int) -> RealVcpu | None:
        vcpus = (vcpu for vm in self._vms for vcpu in vm.vcpus)
        return next((vcpu for vcpu in vcpus if vcpu.file.is_at(tid, fd)), None)

    def _is_open(self, vm: RealVm) -> bool:
        """Does its creator still hold the VM, or a vCPU of it?"""
        return any(self._is_open_in(vm, tid) for tid in proc_fds.tables(vm.space.pid))

    def _is_open_in(self, vm: RealVm, tid: int) -> bool:
        for fd, link in _links(tid):
            if link == _VM_LINK and vm.file.is_at(tid, fd):
                return True
            if link.startswith(_VCPU_LINK) and any(vcpu.file.is_at(tid, fd) for vcpu in vm.vcpus):
                return True
        return False

    def _find_created(self) -> None:
        """Find the files of what was created since."""
        waiting, self._created = self._created[-_MAX_CREATED:], []
        for created in waiting:
            if not self._adopt(created) and created.space.alive():
                self._created.append(created)  # not there yet, or the call failed

    def _adopt(self, created: _Created) -> bool:
        for fd, link in _links(created.pid):
            if link != created.link:
                continue
            known = self._known_vm if created.vm is None else self._known_vcpu
            if known(created.pid, fd) is not None:
                continue
            copy = copy_fd(created.pid, fd)
            if copy is None:
                continue
            if created.vm is None:
                vm = self._kernel.create_vm(created.space)
                self._vms.append(RealVm(vm, created.space, KeptFile(copy)))
            else:
                run = _map_run(copy)
                state = created.vm.vm.new_vcpu()
                created.vm.vcpus.append(RealVcpu(created.vm, state, KeptFile(copy), run))
            return True
        return False


def _map_run(fd: int) -> SharedPage | None:
    try:
        return SharedPage(fd)
    except errors.SevKvmError:
        return None


def _links(tid: int) -> list[tuple[int, str]]:
    """The descriptor table as (number, link)."""
    return [(number, proc_fds.link(tid, number)) for number in proc_fds.numbers(tid)]
