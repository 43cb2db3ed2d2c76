"""The lab's Linux inside an unmodified QEMU: RAM filled (encrypted or plain), vCPU registers set, never run.

with SevHost() as host, sealed_qemu(linux, popen=host.popen, sev_policy=0) as vmm:
    ...                      # a dump of vmm.pid, vmm.vm_fd returns linux.ram, byte for byte
with sealed_qemu(linux) as vmm:
    ...                      # the same bytes, not encrypted: C-bits without a meaning
with sealed_qemu(linux.plain) as vmm:
    ...                      # the plain guest
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sevkvm.host.deputy import Deputy
from sevkvm.host.kvm import VcpuFd, VmFd
from sevkvm.host.port import IoctlPort
from sevkvm.lab.files import mapped
from sevkvm.lab.sealed import LEGACY_HOLE, PlainLinux, SealedLinux
from tests.support.qemu import QemuVmm, qemu
from tests.support.sevhost import require_write

# KVM takes a CR3 with a high C-bit only from a guest whose CPUID has physical addresses that long.
CPU = "EPYC,phys-bits=52"


@contextmanager
def sealed_qemu(
    linux: SealedLinux | PlainLinux, *, sev_policy: int | None = None, **options: Any
) -> Iterator[QemuVmm]:
    """QEMU of the right size with that Linux in it; see ``qemu_argv`` for the options.

    With a policy the RAM is encrypted through KVM_SEV_DBG_ENCRYPT, so the VMM must be on a (pretend) SEV host,
    and the policy must allow debugging; on hardware it is a skip unless guests may be written to. Five-level guests
    need a KVM that takes CR4.LA57.
    """
    if sev_policy is not None:
        require_write()
    machine = _plain(linux).machine
    extra = ["-cpu", CPU, *options.pop("extra", ())]
    options |= {"ram": f"{machine.ram_nbytes >> 20}M", "cpus": machine.cpus, "extra": extra}
    with qemu(sev_policy=sev_policy, **options) as vmm:
        with Deputy(vmm.pid) as port:
            load_ram(vmm, linux, port, encrypt=sev_policy is not None)
            for index, vcpu in enumerate(linux.vcpus):
                fd = VcpuFd(port, vmm.vcpu_fd(index), index)
                fd.set_sregs(vcpu.sregs)
                fd.set_regs(vcpu.regs)
        yield vmm


def _plain(linux: SealedLinux | PlainLinux) -> PlainLinux:
    return linux if isinstance(linux, PlainLinux) else linux.plain


def load_ram(vmm: QemuVmm, linux: SealedLinux | PlainLinux, port: IoctlPort, *, encrypt: bool) -> None:
    """Write the RAM into the VMM's. The legacy hole stays: QEMU shows its ROMs there."""
    vm = VmFd(port, vmm.vm_fd)
    ram_hva = vmm.gpa2hva(0)
    data = mapped(linux.ram)
    for first, end in _plain(linux).private_ranges:
        assert end <= LEGACY_HOLE[0] or first >= LEGACY_HOLE[1]
        for gpa in range(first, end, port.scratch_nbytes):
            nbytes = min(port.scratch_nbytes, end - gpa)
            chunk = bytes(data[gpa : gpa + nbytes])
            if not encrypt:
                port.write(ram_hva + gpa, chunk)
                continue
            # Page-aligned on both sides: the offsets within the page are equal, as DBG_ENCRYPT needs it.
            port.write(port.scratch_hva, chunk)
            vm.sev_dbg_encrypt_unchecked(port.scratch_hva, ram_hva + gpa, nbytes)
