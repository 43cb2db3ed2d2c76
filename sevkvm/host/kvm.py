"""KVM file descriptors, one typed method an ioctl, over any port.

Sources: Linux virt/kvm/kvm_main.c, arch/x86/kvm/x86.c, arch/x86/kvm/svm/sev.c (v6.18).
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from sevkvm import errors
from sevkvm.abi import kvm as abi
from sevkvm.abi import kvmstate, sev
from sevkvm.host.port import IoctlPort

_DATA_OFFSET: Final = 64  # of the second struct in the args area, behind struct kvm_sev_cmd
_CPUID_ROOM: Final = 256
OUT_OF_REACH: Final = (
    "the VMM keeps it in memory that no other process can map, out of the mirror's reach (--via deputy)"
)
_T = TypeVar("_T")


@dataclass(frozen=True)
class VcpuFd:
    """A vCPU. Its ioctls wait for ``vcpu->mutex``: hold the vCPU's thread first, or they wait for the guest."""

    port: IoctlPort
    fd: int
    index: int

    @property
    def unknown(self) -> frozenset[str]:
        """KVM tells every field of the registers that it tells at all."""
        return frozenset()

    def _get(self, request: int, nbytes: int, preset: bytes = b"") -> bytes:
        if preset:
            self.port.write(self.port.args_hva, preset)
        self.port.ioctl(self.fd, request, self.port.args_hva)
        return self.port.read(self.port.args_hva, nbytes)

    def get_regs(self) -> abi.Regs:
        """KVM_GET_REGS. On a SEV-ES guest: EINVAL, or leftovers (check the policy, not the errno)."""
        return abi.Regs.unpack(self._get(abi.KVM_GET_REGS, abi.REGS_NBYTES))

    def get_sregs(self) -> abi.Sregs:
        """KVM_GET_SREGS; ``cr3`` still has the C-bit and the PCID. On SEV-ES as for get_regs."""
        return abi.Sregs.unpack(self._get(abi.KVM_GET_SREGS, abi.SREGS_NBYTES))

    def set_regs(self, regs: abi.Regs) -> None:
        """KVM_SET_REGS."""
        self.port.write(self.port.args_hva, regs.pack())
        self.port.ioctl(self.fd, abi.KVM_SET_REGS, self.port.args_hva)

    def set_sregs(self, sregs: abi.Sregs) -> None:
        """KVM_SET_SREGS."""
        self.port.write(self.port.args_hva, sregs.pack())
        self.port.ioctl(self.fd, abi.KVM_SET_SREGS, self.port.args_hva)

    def get_msr(self, msr: int) -> int | None:
        """KVM_GET_MSRS of one MSR; None where this KVM does not know it."""
        preset = abi.pack_msr(msr)
        self.port.write(self.port.args_hva, preset)
        if self.port.ioctl(self.fd, abi.KVM_GET_MSRS, self.port.args_hva) < 1:
            return None
        return abi.unpack_msr(self.port.read(self.port.args_hva, len(preset)))

    def get_fpu(self) -> kvmstate.Fpu:
        """KVM_GET_XSAVE: x87 and vector registers."""
        return kvmstate.Fpu.unpack(self._get(abi.KVM_GET_XSAVE, abi.request_nbytes(abi.KVM_GET_XSAVE)))

    def get_debugregs(self) -> kvmstate.DebugRegs:
        """KVM_GET_DEBUGREGS: as the guest has them."""
        nbytes = abi.request_nbytes(abi.KVM_GET_DEBUGREGS)
        return kvmstate.DebugRegs.unpack(self._get(abi.KVM_GET_DEBUGREGS, nbytes))

    def get_vcpu_events(self) -> tuple[bool | None, bool | None]:
        """KVM_GET_VCPU_EVENTS: (interrupt shadow, in SMM)."""
        nbytes = abi.request_nbytes(abi.KVM_GET_VCPU_EVENTS)
        return kvmstate.unpack_events(self._get(abi.KVM_GET_VCPU_EVENTS, nbytes))

    def get_halted(self) -> bool:
        """KVM_GET_MP_STATE. An INIT or SIPI that waits is taken by it, as the next KVM_RUN would."""
        nbytes = abi.request_nbytes(abi.KVM_GET_MP_STATE)
        return kvmstate.unpack_halted(self._get(abi.KVM_GET_MP_STATE, nbytes))

    def get_xcr0(self) -> int | None:
        """KVM_GET_XCRS: XCR0."""
        return kvmstate.unpack_xcr0(self._get(abi.KVM_GET_XCRS, abi.request_nbytes(abi.KVM_GET_XCRS)))

    def get_more(self) -> kvmstate.MoreState:
        """All of these; None for each that this KVM does not tell."""
        events = _told(self.get_vcpu_events) or (None, None)
        return kvmstate.MoreState(
            _told(self.get_fpu),
            _told(self.get_debugregs),
            *events,
            _told(self.get_halted),
            _told(self.get_xcr0),
        )

    def get_cpuid2(self) -> list[abi.CpuidEntry]:
        """KVM_GET_CPUID2: what the guest sees; empty if the VMM set nothing."""
        preset = abi.pack_cpuid2([], room=_CPUID_ROOM)
        return abi.unpack_cpuid2(self._get(abi.KVM_GET_CPUID2, len(preset), preset[:8]))


@dataclass(frozen=True)
class VmFd:
    """A VM. Its ioctls work only from the address space that created it (EIO from anywhere else)."""

    port: IoctlPort
    fd: int

    def sev_available(self) -> bool:
        """Does this host's kvm_amd do SEV? (KVM_MEMORY_ENCRYPT_OP with NULL, a probe that changes nothing.)"""
        try:
            self.port.ioctl(self.fd, abi.KVM_MEMORY_ENCRYPT_OP, 0)
        except errors.IoctlError as error:
            if error.errno in (errno.ENOTTY, errno.EINVAL, errno.EFAULT):
                return False
            raise
        return True

    def sev_guest_status(self) -> sev.GuestStatus:
        """KVM_SEV_GUEST_STATUS. ENOTTY: not an encrypted VM; EPERM: an SNP VM."""
        self._sev_op(sev.SevCmd.GUEST_STATUS, bytes(sev.GUEST_STATUS_NBYTES))
        data = self.port.read(self.port.args_hva + _DATA_OFFSET, sev.GUEST_STATUS_NBYTES)
        return sev.GuestStatus.unpack(data)

    def sev_dbg_decrypt(self, src_hva: int, dst_hva: int, nbytes: int) -> None:
        """KVM_SEV_DBG_DECRYPT. Only whole 16-byte blocks and equal page offsets are safe on every kernel."""
        self.submit_sev_dbg_decrypt(src_hva, dst_hva, nbytes)
        self.complete_sev_dbg_decrypt()

    def submit_sev_dbg_decrypt(self, src_hva: int, dst_hva: int, nbytes: int) -> None:
        """Start it; nothing else may be asked through this port until ``complete_sev_dbg_decrypt``."""
        self._submit(sev.SevCmd.DBG_DECRYPT, _pack_dbg(self._operand(src_hva), dst_hva, nbytes))

    def complete_sev_dbg_decrypt(self) -> None:
        """Wait for its end: raises what ``sev_dbg_decrypt`` raises."""
        self._complete(sev.SevCmd.DBG_DECRYPT)

    def sev_dbg_encrypt_unchecked(self, src_hva: int, dst_hva: int, nbytes: int) -> None:
        """KVM_SEV_DBG_ENCRYPT: **writes guest memory**. Same alignment rules; nothing checks what is there."""
        dst_hva = self._operand(dst_hva, write=True)
        self._sev_op(sev.SevCmd.DBG_ENCRYPT, _pack_dbg(src_hva, dst_hva, nbytes))

    def _operand(self, hva: int, *, write: bool = False) -> int:
        found = self.port.operand(hva, write=write)
        if found is None:
            raise errors.MemoryFault("hva", hva, reason=OUT_OF_REACH)
        return found

    def _sev_op(self, command: sev.SevCmd, data: bytes) -> None:
        self._submit(command, data)
        self._complete(command)

    def _submit(self, command: sev.SevCmd, data: bytes) -> None:
        args = self.port.args_hva
        cmd = sev.KvmSevCmd(command, data=args + _DATA_OFFSET)
        self.port.write(args, cmd.pack().ljust(_DATA_OFFSET, b"\0") + data)
        self.port.submit(self.fd, abi.KVM_MEMORY_ENCRYPT_OP, args)

    def _complete(self, command: sev.SevCmd) -> None:
        try:
            self.port.complete()
        except errors.IoctlError as error:
            status = sev.KvmSevCmd.unpack(self.port.read(self.port.args_hva, sev.CMD_NBYTES)).error
            name = f"KVM_SEV_{command.name}"
            # The preset survives unless the firmware was reached, and only EIO reports a firmware status.
            if error.errno == errno.EIO and status not in (0, sev.SEV_RET_NO_FW_CALL):
                raise errors.FirmwareError(
                    name, status, sev.fw_status_name(status), help=sev.fw_status_help(status)
                ) from error
            raise errors.IoctlError(name, error.errno, help=_SEV_OP_HELP.get(error.errno)) from error


def _told(ask: Callable[[], _T]) -> _T | None:
    try:
        return ask()
    except errors.IoctlError:
        return None


def _pack_dbg(src_hva: int, dst_hva: int, nbytes: int) -> bytes:
    if (src_hva | dst_hva | nbytes) % sev.BLOCK_NBYTES or (src_hva ^ dst_hva) & 0xFFF or nbytes <= 0:
        raise ValueError("DBG commands need whole 16-byte blocks at equal page offsets")
    return sev.pack_dbg(src_hva, dst_hva, nbytes)


_SEV_OP_HELP: Final = {
    errno.EIO: "the VM is dead or belongs to another process's memory: is --vm-fd that process's own VM?",
    errno.ENOMEM: "the kernel could not pin guest memory: raise RLIMIT_MEMLOCK, the VMM's or, of a mirror, ours",
    errno.EBADF: "the VMM closed the /dev/sev descriptor that it launched the guest with",
    errno.ENODEV: "the secure processor driver (ccp) is not loaded",
    errno.EBUSY: "the secure processor has stopped answering; see `dmesg | grep -i ccp`; a reboot is needed",
    errno.ETIMEDOUT: "the secure processor did not answer in time and is now disabled until reboot",
}
