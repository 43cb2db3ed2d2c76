"""Descriptors of a ``/dev/kvm`` that does not exist: memfds, recognised by their inodes.

What they answer is mini_kvm's. A vCPU's memfd is what the VMM maps as ``struct kvm_run``.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

from sevkvm.shim import proc_fds
from sevkvm.shim.address_space import AddressSpace
from sevkvm.shim.cpuid import DEFAULT_CBIT_POS
from sevkvm.shim.kernel import Kernel
from sevkvm.shim.mini_kvm import VCPU_MMAP_NBYTES, KvmFile, MiniKvm, SystemFile, VmFile
from sevkvm.shim.mini_vcpu import VcpuFile
from sevkvm.shim.notify import SharedPage
from sevkvm.shim.supervised import SupervisedCaller
from sevkvm.shim.target import Caller

KVM_PATH: Final = "/dev/kvm"
_KEPT_FLAGS: Final = os.O_ACCMODE


@dataclass(eq=False)
class StandInFile:
    """A file of ours behind somebody's descriptor; ``run`` only of a vCPU. ``claimed``: its maker has got it."""

    file: KvmFile
    fd: int
    link: str
    run: SharedPage | None = None
    claimed: bool = False


class StandIn:
    """The files of one host that has no KVM of its own."""

    def __init__(self, kernel: Kernel, cbit_pos: int = DEFAULT_CBIT_POS) -> None:
        self.kvm = MiniKvm(kernel, cbit_pos, self._file_at)
        self._kernel = kernel
        self._files: dict[tuple[int, int], StandInFile] = {}
        self._system = self.add(SystemFile())

    def _file_at(self, caller: Caller, fd: int) -> object:
        assert isinstance(caller, SupervisedCaller)
        made = self.at(caller.tid, fd)
        return None if made is None else made.file

    def add(self, file: KvmFile) -> StandInFile:
        """A descriptor of ours for a new file."""
        name = "kvm"
        link = KVM_PATH
        match file:
            case VmFile():
                name = "kvm-vm"
                link = "anon_inode:kvm-vm"
            case VcpuFile():
                name = f"kvm-vcpu:{file.index}"
                link = f"anon_inode:{name}"
        fd = os.memfd_create(name, os.MFD_CLOEXEC)
        run = None
        if isinstance(file, VcpuFile):
            os.ftruncate(fd, VCPU_MMAP_NBYTES)
            run = SharedPage(fd)
        stat = os.fstat(fd)
        made = StandInFile(file, fd, link, run)
        self._files[stat.st_dev, stat.st_ino] = made
        return made

    def open(self, flags: int) -> int:
        """A descriptor of ours for somebody who opened ``/dev/kvm``."""
        return os.open(f"/proc/self/fd/{self._system.fd}", flags & _KEPT_FLAGS | os.O_CLOEXEC)

    def at(self, tid: int, fd: int) -> StandInFile | None:
        """The file behind a descriptor; None if it is none of ours."""
        identity = proc_fds.identity(tid, fd)
        return None if identity is None else self._files.get(identity)

    def discard(self, made: StandInFile) -> None:
        """A file whose creator was gone before it got its descriptor."""
        match made.file:
            case VmFile() as vm:
                self._drop(vm)
            case VcpuFile() as vcpu:
                self._files = {key: each for key, each in self._files.items() if each is not made}
                for each in self._files.values():
                    if isinstance(each.file, VmFile) and each.file.vcpus.get(vcpu.index) is vcpu:
                        del each.file.vcpus[vcpu.index]
                        vcpu.vm.vcpus.remove(vcpu.state)
                _close(made)

    def link_of(self, identity: tuple[int, int]) -> str | None:
        """What the descriptor's link in /proc is to read."""
        made = self._files.get(identity)
        return None if made is None else made.link

    def forget_dead(self) -> list[StandInFile]:
        """Let VMs go whose creator has closed them or ended; returns the vCPUs that went with them."""
        gone: list[StandInFile] = []
        for made in list(self._files.values()):
            if isinstance(made.file, VmFile) and made.claimed and not self._is_open(made.file):
                gone += self._drop(made.file)
        return gone

    def close(self) -> None:
        """Let all go."""
        for made in self._files.values():
            _close(made)
        self._files.clear()

    def _of(self, vm: VmFile) -> dict[tuple[int, int], StandInFile]:
        mine = (vm, *vm.vcpus.values())
        return {identity: made for identity, made in self._files.items() if made.file in mine}

    def _is_open(self, vm: VmFile) -> bool:
        space = vm.vm.mm
        assert isinstance(space, AddressSpace)
        if not space.alive():
            return False
        mine = self._of(vm)
        return any(
            proc_fds.identity(tid, number) in mine
            for tid in proc_fds.tables(space.pid)
            for number in proc_fds.numbers(tid)
        )

    def _drop(self, vm: VmFile) -> list[StandInFile]:
        mine = self._of(vm)
        for identity, made in mine.items():
            del self._files[identity]
            _close(made)
        self._kernel.destroy_vm(vm.vm)
        if isinstance(vm.vm.mm, AddressSpace):
            for hva, nbytes in vm.vm.regions:
                vm.vm.mm.release(hva, nbytes)
        return [made for made in mine.values() if made.run is not None]


def _close(made: StandInFile) -> None:
    if made.run is not None:
        made.run.close()
    os.close(made.fd)
