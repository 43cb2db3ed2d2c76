"""A plain VM with one vCPU that never runs: the kernel's own page-table walker, asked through KVM_TRANSLATE."""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from typing import TYPE_CHECKING

from sevkvm import native
from sevkvm.abi import kvm

if TYPE_CHECKING:
    from types import TracebackType

KVM_TRANSLATE = 0xC018AE85
TRANSLATION = struct.Struct("<QQBBB5x")
CPUID_ENTRIES = 256
CR0_PE_PG = 1 << 0 | 1 << 31
CR4_PAE, CR4_LA57 = 1 << 5, 1 << 12
EFER_LONG_MODE, EFER_NXE = 1 << 8 | 1 << 10, 1 << 11
NX_FEATURE, GIANT_PAGE_FEATURE = 20, 26  # bits of EDX of leaf 8000_0001


class PlainVm:
    """RAM from gpa 0 on. ``ram`` may be written at any time; KVM sets Accessed bits in its tables."""

    def __init__(self, nbytes: int) -> None:
        self.ram = mmap.mmap(-1, nbytes)
        self._fds = [os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)]
        device = self._fds[0]
        self.vm_fd = fcntl.ioctl(device, kvm.KVM_CREATE_VM, 0)
        self._fds.append(self.vm_fd)
        region = kvm.pack_memory_region(0, 0, 0, nbytes, native.address_of(self.ram))
        fcntl.ioctl(self.vm_fd, kvm.KVM_SET_USER_MEMORY_REGION, region)
        self.vcpu_fd = fcntl.ioctl(self.vm_fd, kvm.KVM_CREATE_VCPU, 0)
        self._fds.append(self.vcpu_fd)
        cpuid = bytearray(kvm.pack_cpuid2([], room=CPUID_ENTRIES))
        fcntl.ioctl(device, kvm.KVM_GET_SUPPORTED_CPUID, cpuid)
        fcntl.ioctl(self.vcpu_fd, kvm.KVM_SET_CPUID2, cpuid)
        features = {entry.function: entry.edx for entry in kvm.unpack_cpuid2(cpuid)}.get(0x8000_0001, 0)
        self.has_nx = bool(features >> NX_FEATURE & 1)
        self.has_giant_pages = bool(features >> GIANT_PAGE_FEATURE & 1)

    def __enter__(self) -> PlainVm:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for fd in reversed(self._fds):
            os.close(fd)
        self.ram.close()

    def set_paging(self, cr3: int, *, levels: int, nx: bool) -> bool:
        """Point the vCPU at tables; False where this KVM did not take the mode (it may say nothing)."""
        wanted = self._sregs()._replace(
            cs=kvm.Segment(limit=0xFFFF_FFFF, selector=8, type=11, present=1, s=1, l=1, g=1),
            cr0=CR0_PE_PG,
            cr3=cr3,
            cr4=CR4_PAE | (CR4_LA57 if levels == 5 else 0),
            efer=EFER_LONG_MODE | (EFER_NXE if nx else 0),
        )
        try:
            fcntl.ioctl(self.vcpu_fd, kvm.KVM_SET_SREGS, wanted.pack())
        except OSError:
            return False
        got = self._sregs()
        return all(getattr(got, name) == getattr(wanted, name) for name in ("cr0", "cr3", "cr4", "efer"))

    def _sregs(self) -> kvm.Sregs:
        data = bytearray(kvm.SREGS_NBYTES)
        fcntl.ioctl(self.vcpu_fd, kvm.KVM_GET_SREGS, data)
        return kvm.Sregs.unpack(data)

    def translate(self, gva: int) -> int | None:
        """The gpa that the kernel's walk finds; it looks at no permissions and no canonical form."""
        data = bytearray(TRANSLATION.pack(gva, 0, 0, 0, 0))
        fcntl.ioctl(self.vcpu_fd, KVM_TRANSLATE, data)
        _, gpa, valid, _, _ = TRANSLATION.unpack(data)
        return gpa if valid else None
