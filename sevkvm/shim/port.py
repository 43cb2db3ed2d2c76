"""Door 2: the pretend host in our own process, as an ``IoctlPort`` (sevkvm/host/port.py) for unit tests.

    guest = launch_guest(ram={0x0: contents}, policy=0, shared=[(0x3000, 0x1000)])
    vm = VmFd(guest.port, guest.vm_fd)          # sevkvm.host.kvm
    guest.port.kernel.firmware.counts["DBG_DECRYPT"]

``launch_guest(ram, *, policy=0, shared=(), vcpus=1, es=False, finish=True, port=None, new_vm_type=False)``
    Maps every ``gpa: bytes`` item of ``ram`` (whole pages), launches all of it but the ``(gpa, nbytes)`` ranges in
    ``shared``, which stay plaintext; ``policy=None`` makes a VM that is not encrypted; ``new_vm_type`` one of
    KVM_CREATE_VM's types of 6.10 (SEV or SEV-ES), made a SEV VM by INIT2. The FakeGuest has ``port``,
    ``vm_fd``, ``sev_fd``, ``vcpu_fds`` and ``slots`` [(gpa, nbytes, hva)], and ``vcpu(i)`` whose ``regs``, ``sregs``
    and ``cpuid`` may be set, and ``hva(gpa)``.

``launch_snp_guest(ram, *, policy=SNP_POLICY, vcpus=1, port=None) -> FakeGuest``
    The same for a SEV-SNP guest. Its memory is not where a VMM could see it, so ``ram`` is what it shares.

``FakePort(kernel=None, *, scratch_nbytes=1 << 20, cbit_pos=51)``
    The IoctlPort. ``map(nbytes_or_bytes, hva=None, writable=True)`` adds memory; ``open_sev()``, ``create_vm()``,
    ``create_vcpu(vm_fd, i)`` add descriptors; ``files`` is the descriptor table. A second FakePort with the same
    ``kernel`` is another process: put a file of the first into its ``files`` and ioctls on it answer EIO.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from sevkvm.abi import kvm as abi
from sevkvm.abi import sev
from sevkvm.shim.fake_port import ARGS_NBYTES, FakePort, SevFile
from sevkvm.shim.mini_vcpu import VcpuFile

__all__ = ["SNP_POLICY", "FakeGuest", "FakePort", "SevFile", "launch_guest", "launch_snp_guest"]

SNP_POLICY: Final = 0x30000  # QEMU's default: SMT is allowed


@dataclass
class FakeGuest:
    """A launched guest; ``slots`` are (gpa, nbytes, hva)."""

    port: FakePort
    vm_fd: int
    sev_fd: int
    vcpu_fds: list[int] = field(default_factory=list)
    slots: list[tuple[int, int, int]] = field(default_factory=list)

    def vcpu(self, index: int = 0) -> VcpuFile:
        """The vCPU behind ``vcpu_fds[index]``."""
        file = self.port.files[self.vcpu_fds[index]]
        assert isinstance(file, VcpuFile)
        return file

    def hva(self, gpa: int) -> int:
        """Where the VMM keeps ``gpa``."""
        return next(hva + gpa - start for start, nbytes, hva in self.slots if start <= gpa < start + nbytes)


def launch_guest(
    ram: Mapping[int, bytes],
    *,
    policy: int | None = 0,
    shared: Iterable[tuple[int, int]] = (),
    vcpus: int = 1,
    es: bool = False,
    finish: bool = True,
    port: FakePort | None = None,
    new_vm_type: bool = False,
) -> FakeGuest:
    """Launch a guest as documented at the top of this module."""
    port = FakePort() if port is None else port
    new_type = abi.KVM_X86_SEV_ES_VM if es else abi.KVM_X86_SEV_VM
    sev_fd, vm_fd = port.open_sev(), port.create_vm(new_type if new_vm_type else abi.KVM_X86_DEFAULT_VM)
    guest = FakeGuest(port, vm_fd, sev_fd)
    if policy is not None and new_vm_type:
        port.sev_op(vm_fd, sev.SevCmd.INIT2, sev.SevInit().pack())
    elif policy is not None:
        port.sev_op(vm_fd, sev.SevCmd.ES_INIT if es else sev.SevCmd.INIT)
    if policy is not None:
        start = sev.LaunchStart(policy=policy)
        port.sev_op(vm_fd, sev.SevCmd.LAUNCH_START, start.pack(), sev_fd=sev_fd)
    guest.vcpu_fds = [port.create_vcpu(vm_fd, index) for index in range(vcpus)]
    shared = sorted(shared)
    _map_slots(guest, ram)
    for gpa, length, _ in guest.slots:
        if policy is not None:
            for start_gpa, nbytes in _private(gpa, length, shared):
                data = sev.pack_uaddr_len(guest.hva(start_gpa), nbytes)
                port.sev_op(vm_fd, sev.SevCmd.LAUNCH_UPDATE_DATA, data)
    if policy is not None and finish:
        if es:
            port.sev_op(vm_fd, sev.SevCmd.LAUNCH_UPDATE_VMSA)
        room = port.args_hva + ARGS_NBYTES - 256
        port.sev_op(vm_fd, sev.SevCmd.LAUNCH_MEASURE, sev.pack_uaddr_len(room, 48))
        port.sev_op(vm_fd, sev.SevCmd.LAUNCH_FINISH)
    return guest


def launch_snp_guest(
    ram: Mapping[int, bytes], *, policy: int = SNP_POLICY, vcpus: int = 1, port: FakePort | None = None
) -> FakeGuest:
    """Launch a SEV-SNP guest as documented at the top of this module."""
    port = FakePort() if port is None else port
    guest = FakeGuest(port, port.create_vm(abi.KVM_X86_SNP_VM), port.open_sev())
    port.sev_op(guest.vm_fd, sev.SevCmd.INIT2, sev.SevInit().pack())
    start = policy.to_bytes(8, "little").ljust(64, b"\0")
    port.sev_op(guest.vm_fd, sev.SevCmd.SNP_LAUNCH_START, start, sev_fd=guest.sev_fd)
    guest.vcpu_fds = [port.create_vcpu(guest.vm_fd, index) for index in range(vcpus)]
    _map_slots(guest, ram)
    port.sev_op(guest.vm_fd, sev.SevCmd.SNP_LAUNCH_FINISH, bytes(88), sev_fd=guest.sev_fd)
    return guest


def _map_slots(guest: FakeGuest, ram: Mapping[int, bytes]) -> None:
    port = guest.port
    for number, (gpa, contents) in enumerate(sorted(ram.items())):
        region = port.map(contents)
        guest.slots.append((gpa, len(region.data), region.hva))
        port.write(port.args_hva, abi.pack_memory_region(number, 0, *guest.slots[-1]))
        port.ioctl(guest.vm_fd, abi.KVM_SET_USER_MEMORY_REGION, port.args_hva)


def _private(gpa: int, nbytes: int, shared: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """[gpa, gpa + nbytes) without the shared ranges, as (gpa, nbytes)."""
    pieces, end = [], gpa + nbytes
    for start, length in shared:
        if gpa < start < end:
            pieces.append((gpa, start - gpa))
        if start < end and start + length > gpa:
            gpa = max(gpa, start + length)
    if gpa < end:
        pieces.append((gpa, end - gpa))
    return pieces
