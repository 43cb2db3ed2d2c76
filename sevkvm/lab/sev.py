"""Launch a SEV guest: the commands of KVM_MEMORY_ENCRYPT_OP, in the order that the kernel documents.

Source: Linux Documentation/virt/kvm/x86/amd-memory-encryption.rst (v6.18).
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import Final

from sevkvm import errors, native
from sevkvm.abi import kvm, sev
from sevkvm.abi.policy import Policy
from sevkvm.lab.ioctl import ioctl

UPDATE_MAX: Final = 64 << 20  # of one LAUNCH_UPDATE_DATA, whose length is a u32 and which pins it all

_HELP: Final = {
    errno.ENOTTY: "this KVM does no SEV: kvm_amd with sev=1 (SEV-ES: sev_es=1) on an EPYC host, SEV on in the BIOS",
    errno.EINVAL: "the kernel knows no such guest; for SEV-ES: is kvm_amd.sev_es on?",
    errno.ENOMEM: "the kernel could not pin the guest's memory: raise `ulimit -l` (RLIMIT_MEMLOCK)",
    errno.EBUSY: "no free ASID: end another SEV guest, or raise the number of SEV-ES guests in the BIOS",
    errno.ENODEV: "the secure processor driver (ccp) is not loaded; see `dmesg | grep -i -e ccp -e sev`",
}


def vm_type(policy: int) -> int:
    """What KVM_CREATE_VM takes since Linux 6.10 for a guest of this policy; before, all were KVM_X86_DEFAULT_VM."""
    return kvm.KVM_X86_SEV_ES_VM if Policy(policy).es else kvm.KVM_X86_SEV_VM


@dataclass(frozen=True)
class SevLaunch:
    """The launch of one VM. ``sev_fd`` must stay open as long as the VM lives: later commands use it too."""

    vm_fd: int
    sev_fd: int

    def start(self, policy: int, *, typed: bool = False) -> int:
        """INIT (ES_INIT if the policy says ES) and LAUNCH_START; the firmware's handle. Before any vCPU.

        ``typed``: the VM was made with :func:`vm_type`, which wants INIT2.
        """
        if typed:
            self._op(sev.SevCmd.INIT2, bytearray(sev.SevInit().pack()))
        else:
            self._op(sev.SevCmd.ES_INIT if Policy(policy).es else sev.SevCmd.INIT)
        data = bytearray(sev.LaunchStart(policy=policy).pack())
        self._op(sev.SevCmd.LAUNCH_START, data)
        return sev.LaunchStart.unpack(data).handle

    def register(self, hva: int, nbytes: int) -> None:
        """KVM_MEMORY_ENCRYPT_REG_REGION: memory that may hold encrypted pages, which must not move."""
        try:
            ioctl(self.vm_fd, kvm.KVM_MEMORY_ENCRYPT_REG_REGION, bytearray(kvm.pack_enc_region(hva, nbytes)))
        except errors.IoctlError as error:
            raise errors.IoctlError(
                error.request, error.errno or 0, help=_HELP.get(error.errno or 0)
            ) from error

    def encrypt(self, hva: int, nbytes: int) -> None:
        """LAUNCH_UPDATE_DATA: measure and encrypt in place; whole 16-byte blocks."""
        for start in range(hva, hva + nbytes, UPDATE_MAX):
            count = min(UPDATE_MAX, hva + nbytes - start)
            self._op(sev.SevCmd.LAUNCH_UPDATE_DATA, bytearray(sev.pack_uaddr_len(start, count)))

    def encrypt_vcpus(self) -> None:
        """LAUNCH_UPDATE_VMSA: the registers of all vCPUs are the guest's own from here on (SEV-ES)."""
        self._op(sev.SevCmd.LAUNCH_UPDATE_VMSA)

    def measure(self) -> bytes:
        """LAUNCH_MEASURE: ask for the length, then for the measurement and its nonce."""
        data = bytearray(sev.pack_uaddr_len(0, 0))
        try:
            self._op(sev.SevCmd.LAUNCH_MEASURE, data)
        except errors.FirmwareError as error:
            if error.status != sev.FwStatus.INVALID_LEN:
                raise
        (_, nbytes) = sev.unpack_uaddr_len(data)
        measurement = bytearray(nbytes)
        data[:] = sev.pack_uaddr_len(native.address_of(measurement), nbytes)
        self._op(sev.SevCmd.LAUNCH_MEASURE, data)
        return bytes(measurement)

    def finish(self) -> None:
        """LAUNCH_FINISH: the guest may run."""
        self._op(sev.SevCmd.LAUNCH_FINISH)

    def _op(self, command: sev.SevCmd, data: bytearray | None = None) -> None:
        hva = 0 if data is None else native.address_of(data)
        cmd = bytearray(sev.KvmSevCmd(command, data=hva, sev_fd=self.sev_fd).pack())
        name = f"KVM_SEV_{command.name}"
        try:
            ioctl(self.vm_fd, kvm.KVM_MEMORY_ENCRYPT_OP, cmd)
        except errors.IoctlError as error:
            status = sev.KvmSevCmd.unpack(cmd).error
            os_errno = error.errno or 0
            # The preset survives unless the firmware was reached, and only EIO reports a firmware status.
            if os_errno == errno.EIO and status not in (0, sev.SEV_RET_NO_FW_CALL):
                raise errors.FirmwareError(
                    name, status, sev.fw_status_name(status), help=sev.fw_status_help(status)
                ) from error
            raise errors.IoctlError(name, os_errno, help=_HELP.get(os_errno)) from error
