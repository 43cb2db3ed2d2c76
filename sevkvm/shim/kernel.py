"""The pretend kvm_amd: checks in the kernel's order, each with its errno, on top of the firmware model.

Sources: Linux virt/kvm/kvm_main.c (kvm_vm_ioctl), arch/x86/kvm/x86.c, arch/x86/kvm/svm/sev.c (v6.18; the debug
commands by generation). Both doors call Kernel.vm_ioctl with a Caller of their own.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from typing import Final

from sevkvm.abi import kvm as abi
from sevkvm.abi.kvm import EnableCap
from sevkvm.abi.sev import CMD_ERROR_OFFSET, CMD_NBYTES, KvmSevCmd, SevCmd
from sevkvm.shim import regions
from sevkvm.shim.commands import HANDLERS, command_name
from sevkvm.shim.faults import Faults
from sevkvm.shim.firmware import Firmware
from sevkvm.shim.generation import Generation
from sevkvm.shim.log import CommandLog, Record
from sevkvm.shim.mirror import ALLOWED_ON_MIRRORS, copy_context, move_context
from sevkvm.shim.pace import Pace
from sevkvm.shim.sev_op import Errno, SevOp, forget_guest, forget_snp_guest
from sevkvm.shim.target import Caller, read_exactly
from sevkvm.shim.vm import VM_TYPE_DEFAULT, Vm

SEV_REQUESTS: Final = (
    abi.KVM_MEMORY_ENCRYPT_OP,
    abi.KVM_MEMORY_ENCRYPT_REG_REGION,
    abi.KVM_MEMORY_ENCRYPT_UNREG_REGION,
)
_ROOM_NBYTES: Final = 1 << 20

# What KVM_ENABLE_CAP may be asked of here, by capability.
CONTEXT_CAPABILITIES: Final[dict[int, tuple[str, Callable[[Vm, Vm], None]]]] = {
    abi.KVM_CAP_VM_COPY_ENC_CONTEXT_FROM: ("COPY_ENC_CONTEXT_FROM", copy_context),
    abi.KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM: ("MOVE_ENC_CONTEXT_FROM", move_context),
}


class Kernel:
    """One pretend host's kvm_amd. Thread-safe: one lock stands for every ``kvm->lock`` and for the mailbox."""

    def __init__(
        self,
        firmware: Firmware | None = None,
        log: CommandLog | None = None,
        *,
        generation: Generation = "new",
        faults: Faults | None = None,
    ) -> None:
        self.generation = generation
        self.firmware = Firmware() if firmware is None else firmware
        if faults is not None:
            self.firmware.faults = faults
        self.pace = Pace()
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
        """The last descriptor is closed: as soon as no mirror is left, the firmware forgets the guest."""
        with self.mailbox:
            vm.dead = vm.closed = True
            self._release(vm)

    def _release(self, vm: Vm) -> None:
        """sev_vm_destroy, once the last reference is gone."""
        if vm.mirrors:
            return
        self.vms.remove(vm)
        if vm.owner:
            vm.owner.mirrors.remove(vm)
            if vm.owner.closed:
                self._release(vm.owner)
        elif vm.handle:
            forget_guest(self.firmware, vm.handle)
        elif vm.snp_context:
            forget_snp_guest(self.firmware, vm.snp_context)

    def refuses(self, vm: Vm, caller: Caller) -> bool:
        """EIO to everything: the VM is another address space's, or dead."""
        vm.dead = vm.dead or self.firmware.faults.vm_dead
        return vm.mm != caller.mm or vm.dead

    def vm_ioctl(self, vm: Vm, caller: Caller, request: int, argument: int) -> int:
        """KVM_MEMORY_ENCRYPT_OP, _REG_REGION or _UNREG_REGION on a VM: 0, or -errno. Raises CallerGone."""
        if self.refuses(vm, caller):
            return -errno.EIO
        with self.mailbox:
            if request == abi.KVM_MEMORY_ENCRYPT_OP:
                return self._mem_enc_op(vm, caller, argument)
            register = request == abi.KVM_MEMORY_ENCRYPT_REG_REGION
            op = self._op(vm, caller, "REG_REGION" if register else "UNREG_REGION", argument)
            return self._logged(op, lambda: (regions.register if register else regions.unregister)(op))

    def enable_cap(self, vm: Vm, caller: Caller, enable: EnableCap, vm_at: Callable[[int], Vm | None]) -> int:
        """KVM_ENABLE_CAP for one of CONTEXT_CAPABILITIES; ``vm_at`` finds the VM behind a caller's descriptor."""
        if self.refuses(vm, caller):
            return -errno.EIO
        name, take = CONTEXT_CAPABILITIES[enable.capability]
        source_fd = enable.arg0 & 0xFFFFFFFF

        def take_context() -> None:
            if enable.flags:
                raise Errno(errno.EINVAL)
            source = vm_at(source_fd)
            if source is None:
                raise Errno(errno.EBADF)
            op.record.args["source_vm"] = source.number
            take(vm, source)

        with self.mailbox:
            op = self._op(vm, caller, name)
            op.record.args["source_fd"] = source_fd
            return self._logged(op, take_context)

    def _op(self, vm: Vm, caller: Caller, name: str, data: int = 0, error: int = 0, sev_fd: int = 0) -> SevOp:
        record = Record(name, caller.pid, vm.number)
        room, generation = self._room, self.generation
        return SevOp(vm, caller, self.firmware, data, error, sev_fd, record, self.vms, room, generation)

    def _logged(self, op: SevOp, work: Callable[[], None]) -> int:
        """0 or -errno, and a record of it."""
        try:
            work()
        except Errno as error:
            op.record.errno = error.errno
        finally:
            self.log.add(op.record)
        return -op.record.errno

    def _mem_enc_op(self, vm: Vm, caller: Caller, argument: int) -> int:
        """sev_mem_enc_ioctl."""
        if not argument:
            return 0  # "is SEV on?"
        raw = read_exactly(caller.memory, argument, CMD_NBYTES)
        if raw is None:
            return -errno.EFAULT
        cmd = KvmSevCmd.unpack(raw)
        op = self._op(vm, caller, command_name(cmd.id), cmd.data, cmd.error, cmd.sev_fd)

        def dispatch() -> None:
            try:
                self._dispatch(op, cmd.id, argument, raw)
            finally:
                op.record.status = op.error

        return self._logged(op, dispatch)

    def _dispatch(self, op: SevOp, command: int, argument: int, raw: bytes) -> None:
        if op.vm.owner and command not in ALLOWED_ON_MIRRORS:
            raise Errno(errno.EINVAL)
        if op.vm.snp and command < SevCmd.SNP_LAUNCH_START:
            raise Errno(errno.EPERM)
        handler = HANDLERS.get(command)
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
