"""A small VMM: launch an :class:`Image` on KVM, as a SEV guest the documented way or as a plain VM.

It is an ordinary user of the kernel's interfaces and runs unchanged on an EPYC host.
"""

from __future__ import annotations

import errno
import os
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sevkvm import errors, native
from sevkvm.abi import kvm, x86
from sevkvm.abi.policy import Policy
from sevkvm.lab import cpuid
from sevkvm.lab.ioctl import START_HELP, ioctl, open_device, open_kvm
from sevkvm.lab.ram import Backing, fill, map_slot
from sevkvm.lab.sev import SevLaunch, vm_type
from sevkvm.lab.vcpu_thread import Rhythm, VcpuThread

if TYPE_CHECKING:
    import mmap
    from collections.abc import Iterator

    from sevkvm.lab.image import Image, VcpuInit


@dataclass(frozen=True)
class LaunchOptions:
    """``policy`` None: a plain VM. ``run``: a thread for each vCPU enters the guest.

    ``typed``: made as one of the VM types for SEV that KVM has since Linux 6.10.

    ``rhythm``: what those threads do when the guest halts (an image that is alive does); None: the kernel keeps it.
    """

    policy: int | None = None
    backing: Backing = Backing.ANONYMOUS
    run: bool = False
    rhythm: Rhythm | None = None
    typed: bool = False


@dataclass
class LabVm:
    """A launched guest. Slots are in the image's order, ``ram`` and ``vcpu_fds`` too."""

    image: Image
    options: LaunchOptions
    vm_fd: int
    sev_fd: int | None = None
    ram: list[mmap.mmap] = field(default_factory=list)
    vcpu_fds: list[int] = field(default_factory=list)
    measurement: bytes | None = None

    def hva(self, gpa: int) -> int:
        """Where ``gpa`` is in this process; KeyError outside every slot."""
        for slot, ram in zip(self.image.slots, self.ram, strict=True):
            if slot.gpa <= gpa < slot.end:
                return native.address_of(ram) + gpa - slot.gpa
        raise KeyError(hex(gpa))

    def arguments(self) -> list[str]:
        """What to pass to sevkvm's commands, so that they need not search for this guest."""
        words = ["--pid", str(os.getpid()), "--vm-fd", str(self.vm_fd)]
        for slot in self.image.slots:
            readonly = ":ro" if slot.readonly else ""
            words += ["--slot", f"{slot.gpa:#x}:{slot.nbytes:#x}:{self.hva(slot.gpa):#x}{readonly}"]
        return words

    def describe(self) -> dict[str, object]:
        """What a test or a script wants to know, ready for JSON: addresses are hexadecimal strings."""
        return {
            "pid": os.getpid(),
            "vm_fd": self.vm_fd,
            "vcpu_fds": self.vcpu_fds,
            "sev_fd": self.sev_fd,
            "policy": None if self.options.policy is None else hex(self.options.policy),
            "cbit_pos": self.image.cbit_pos,
            "cr3": hex(self.image.vcpus[0].sregs.cr3),
            "backing": self.options.backing.value,
            "running": self.options.run,
            "measurement": None if self.measurement is None else self.measurement.hex(),
            "slots": [
                {
                    "gpa": hex(slot.gpa),
                    "size": slot.nbytes,
                    "hva": hex(self.hva(slot.gpa)),
                    "name": slot.name,
                    "readonly": slot.readonly,
                }
                for slot in self.image.slots
            ],
            "arguments": self.arguments(),
            "landmarks": [
                {"name": mark.name, "gva": hex(mark.gva), "gpa": hex(mark.gpa), "size": mark.nbytes}
                for mark in self.image.landmarks
            ],
        }


@contextmanager
def launched(image: Image, options: LaunchOptions) -> Iterator[LabVm]:
    """Launch it; on leaving, the vCPUs stop and VM and memory are gone."""
    if (options.policy is None) != (image.cbit_pos is None):
        raise errors.UsageError("an encrypted guest needs a policy and a C-bit, a plain one neither")
    es = options.policy is not None and Policy(options.policy).es
    if es and options.run:
        raise errors.UsageError("the lab's SEV-ES guest has no #VC handler and cannot run")
    with ExitStack() as undo:
        kvm_fd = open_kvm()
        undo.callback(os.close, kvm_fd)
        offered = cpuid.supported(kvm_fd)
        kind = (
            vm_type(options.policy)
            if options.typed and options.policy is not None
            else kvm.KVM_X86_DEFAULT_VM
        )
        vm = LabVm(image, options, ioctl(kvm_fd, kvm.KVM_CREATE_VM, kind))
        undo.callback(os.close, vm.vm_fd)
        launch = _sev_start(vm, undo)
        _add_memory(vm, undo)
        if launch:
            _encrypt(vm, launch)
        # SEV-ES demands an interrupt controller; with one a halted vCPU sleeps in the kernel
        if es or (options.run and options.rhythm is None):
            ioctl(vm.vm_fd, kvm.KVM_CREATE_IRQCHIP)
        for number, init in enumerate(image.vcpus):
            fd = ioctl(vm.vm_fd, kvm.KVM_CREATE_VCPU, number)
            vm.vcpu_fds.append(fd)
            undo.callback(os.close, fd)
            ids = cpuid.GuestCpu(image.cbit_pos, es).entries(offered, number)
            ioctl(fd, kvm.KVM_SET_CPUID2, bytearray(kvm.pack_cpuid2(ids)))
            set_registers(fd, init, offered)
        if launch:
            if es:
                launch.encrypt_vcpus()
            vm.measurement = launch.measure()
            launch.finish()
        if options.run:
            run_nbytes = ioctl(kvm_fd, kvm.KVM_GET_VCPU_MMAP_SIZE)
            for number, fd in enumerate(vm.vcpu_fds):
                undo.callback(VcpuThread(fd, number, run_nbytes, options.rhythm).stop)
        yield vm


def _sev_start(vm: LabVm, undo: ExitStack) -> SevLaunch | None:
    if vm.options.policy is None:
        return None
    vm.sev_fd = open_device("/dev/sev", START_HELP)
    undo.callback(os.close, vm.sev_fd)
    launch = SevLaunch(vm.vm_fd, vm.sev_fd)
    launch.start(vm.options.policy, typed=vm.options.typed)
    return launch


def _add_memory(vm: LabVm, undo: ExitStack) -> None:
    """Map every slot, fill it with the image's plaintext, and give it to KVM."""
    for number, slot in enumerate(vm.image.slots):
        ram = map_slot(slot, vm.options.backing)
        vm.ram.append(ram)
        undo.callback(ram.close)
        fill(ram, slot, vm.image)
        flags = kvm.KVM_MEM_READONLY if slot.readonly else 0
        region_bytes = kvm.pack_memory_region(number, flags, slot.gpa, slot.nbytes, native.address_of(ram))
        ioctl(vm.vm_fd, kvm.KVM_SET_USER_MEMORY_REGION, bytearray(region_bytes))


def _encrypt(vm: LabVm, launch: SevLaunch) -> None:
    for slot in vm.image.slots:
        launch.register(vm.hva(slot.gpa), slot.nbytes)
    for gpa, nbytes in vm.image.private_ranges():
        launch.encrypt(vm.hva(gpa), nbytes)


def set_registers(fd: int, init: VcpuInit, offered: list[kvm.CpuidEntry]) -> None:
    """Give a vCPU its registers; control registers that this KVM refuses are an IoctlError that says why."""
    sregs = init.sregs
    if sregs.cr4 & x86.CR4_PCIDE and not cpuid.has_pcid(offered):
        print("sevkvm lab: this KVM has no PCIDs: CR3 keeps its PCID, CR4.PCIDE stays clear", file=sys.stderr)
        sregs = sregs._replace(cr4=sregs.cr4 & ~x86.CR4_PCIDE)
    try:
        ioctl(fd, kvm.KVM_SET_SREGS, bytearray(sregs.pack()))
    except errors.IoctlError as error:
        if error.errno != errno.EINVAL:
            raise
        help = "this KVM refuses the guest's control registers"
        if sregs.cr4 & x86.CR4_LA57 and not cpuid.has_la57(offered):
            help = "this KVM has no 5-level paging (CR4.LA57): use --levels 4"
        raise errors.IoctlError(error.request, errno.EINVAL, help=help) from error
    ioctl(fd, kvm.KVM_SET_REGS, bytearray(init.regs.pack()))
