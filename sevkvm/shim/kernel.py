"""The pretend kvm_amd: checks in the kernel's order, each with its errno, on top of the firmware model.

Sources: Linux virt/kvm/kvm_main.c (kvm_vm_ioctl), arch/x86/kvm/x86.c, arch/x86/kvm/svm/sev.c (v6.18; the debug
commands by generation). Both doors call Kernel.vm_ioctl with a Caller of their own.
"""

from __future__ import annotations

import errno
import struct
import threading
from collections.abc import Callable
from typing import Final

from sevkvm.abi import kvm as abi
from sevkvm.abi.sev import CMD_ERROR_OFFSET, CMD_NBYTES, KvmSevCmd, SevCmd
from sevkvm.shim import dbg_crypt, guest_init, launch_ops, migration_ops, secret_ops
from sevkvm.shim.firmware import Firmware
from sevkvm.shim.generation import Generation
from sevkvm.shim.log import CommandLog, Record
from sevkvm.shim.sev_op import Errno, SevOp, npages
from sevkvm.shim.target import Caller, read_exactly
from sevkvm.shim.vm import VM_TYPE_DEFAULT, Vm

SEV_REQUESTS: Final = (
    abi.KVM_MEMORY_ENCRYPT_OP,
    abi.KVM_MEMORY_ENCRYPT_REG_REGION,
    abi.KVM_MEMORY_ENCRYPT_UNREG_REGION,
)
_ROOM_NBYTES: Final = 1 << 20
_REGION: Final = struct.Struct("<QQ")

Handler = Callable[[SevOp], None]

_HANDLERS: Final[dict[int, Handler]] = {
    SevCmd.INIT: guest_init.init,
    SevCmd.ES_INIT: guest_init.es_init,
    SevCmd.INIT2: guest_init.init2,
    SevCmd.LAUNCH_START: launch_ops.launch_start,
    SevCmd.LAUNCH_UPDATE_DATA: launch_ops.launch_update_data,
    SevCmd.LAUNCH_UPDATE_VMSA: launch_ops.launch_update_vmsa,
    SevCmd.LAUNCH_MEASURE: launch_ops.launch_measure,
    SevCmd.LAUNCH_FINISH: launch_ops.launch_finish,
    SevCmd.LAUNCH_SECRET: secret_ops.launch_secret,
    SevCmd.GET_ATTESTATION_REPORT: secret_ops.get_attestation_report,
    SevCmd.SEND_START: migration_ops.send_start,
    SevCmd.SEND_UPDATE_DATA: migration_ops.send_update_data,
    SevCmd.SEND_FINISH: migration_ops.send_finish,
    SevCmd.SEND_CANCEL: migration_ops.send_cancel,
    SevCmd.RECEIVE_START: migration_ops.receive_start,
    SevCmd.RECEIVE_UPDATE_DATA: migration_ops.receive_update_data,
    SevCmd.RECEIVE_FINISH: migration_ops.receive_finish,
    SevCmd.GUEST_STATUS: launch_ops.guest_status,
    SevCmd.DBG_DECRYPT: dbg_crypt.dbg_decrypt,
    SevCmd.DBG_ENCRYPT: dbg_crypt.dbg_encrypt,
}


def command_name(command: int) -> str:
    """``DBG_DECRYPT`` and the like, or the number of a command that nobody knows."""
    try:
        return SevCmd(command).name
    except ValueError:
        return f"command {command}"


class Kernel:
    """One pretend host's kvm_amd. Thread-safe: one lock stands for every ``kvm->lock`` and for the mailbox."""

    def __init__(
        self,
        firmware: Firmware | None = None,
        log: CommandLog | None = None,
        *,
        generation: Generation = "new",
    ) -> None:
        self.generation = generation
        self.firmware = Firmware() if firmware is None else firmware
        self.log = CommandLog() if log is None else log
        self.vms: list[Vm] = []
        self._created = 0
        self.mailbox = threading.RLock()
        self._room = memoryview(bytearray(_ROOM_NBYTES))

    def create_vm(self, mm: object, vm_type: int = VM_TYPE_DEFAULT) -> Vm:
        """KVM_CREATE_VM by address space ``mm``."""
        with self.mailbox:
            self._created += 1
            vm = Vm(self._created, mm, vm_type)
            self.vms.append(vm)
            return vm

    def destroy_vm(self, vm: Vm) -> None:
        """The last descriptor is closed (sev_vm_destroy): the firmware forgets the guest."""
        with self.mailbox:
            self.vms.remove(vm)
            if vm.handle:
                self.firmware.deactivate(vm.handle)
                self.firmware.decommission(vm.handle)
            vm.dead = True

    def vm_ioctl(self, vm: Vm, caller: Caller, request: int, argument: int) -> int:
        """KVM_MEMORY_ENCRYPT_OP, _REG_REGION or _UNREG_REGION on a VM: 0, or -errno. Raises CallerGone."""
        if vm.mm != caller.mm or vm.dead:
            return -errno.EIO
        with self.mailbox:
            try:
                if request == abi.KVM_MEMORY_ENCRYPT_OP:
                    self._mem_enc_op(vm, caller, argument)
                else:
                    self._region(vm, caller, argument, request == abi.KVM_MEMORY_ENCRYPT_REG_REGION)
            except Errno as error:
                return -error.errno
        return 0

    def _mem_enc_op(self, vm: Vm, caller: Caller, argument: int) -> None:
        """sev_mem_enc_ioctl."""
        if not argument:
            return  # "is SEV on?"
        raw = read_exactly(caller.memory, argument, CMD_NBYTES)
        if raw is None:
            raise Errno(errno.EFAULT)
        cmd = KvmSevCmd.unpack(raw)
        record = Record(command_name(cmd.id), caller.pid, vm.number)
        op = SevOp(
            vm,
            caller,
            self.firmware,
            cmd.data,
            cmd.error,
            cmd.sev_fd,
            record,
            self.vms,
            self._room,
            self.generation,
        )
        try:
            self._dispatch(op, cmd.id, argument, raw)
        except Errno as error:
            record.errno = error.errno
            raise
        finally:
            record.status = op.error
            self.log.add(record)

    def _dispatch(self, op: SevOp, command: int, argument: int, raw: bytes) -> None:
        # mirror VMs (EINVAL) and SNP VMs (EPERM) are refused before the id is looked at
        handler = _HANDLERS.get(command)
        if handler is None:
            raise Errno(errno.EINVAL)
        failure: Errno | None = None
        try:
            handler(op)
        except Errno as error:
            failure = error
        # an id that is known has its struct copied back whatever happened
        end = CMD_ERROR_OFFSET + 4
        op.copy_to_user(argument, raw[:CMD_ERROR_OFFSET] + op.error.to_bytes(4, "little") + raw[end:])
        if failure:
            raise failure

    def _region(self, vm: Vm, caller: Caller, argument: int, register: bool) -> None:
        """sev_mem_enc_register_region and _unregister_region."""
        raw = read_exactly(caller.memory, argument, _REGION.size)
        if raw is None:
            raise Errno(errno.EFAULT)
        hva, nbytes = _REGION.unpack(raw)
        name = "REG_REGION" if register else "UNREG_REGION"
        record = Record(name, caller.pid, vm.number, {"hva": hva, "nbytes": nbytes})
        op = SevOp(vm, caller, self.firmware, 0, 0, 0, record, self.vms, self._room)
        try:
            op.require_sev()
            if register:
                op.pin(hva, nbytes, write=True)
                vm.regions.append((hva, nbytes))
                vm.pages_locked += npages(hva, nbytes)
                caller.memory.keep(hva, nbytes)
            elif (hva, nbytes) in vm.regions:
                vm.regions.remove((hva, nbytes))
                vm.pages_locked -= npages(hva, nbytes)
                caller.memory.release(hva, nbytes)
            else:
                raise Errno(errno.EINVAL)
        except Errno as error:
            record.errno = error.errno
            raise
        finally:
            self.log.add(record)
