"""A pretend process: descriptors, memory, and ioctls that go to the kernel model (see port.py)."""

from __future__ import annotations

import errno
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sevkvm import errors
from sevkvm.abi import kvm as abi
from sevkvm.abi import sev
from sevkvm.shim.cpuid import DEFAULT_CBIT_POS
from sevkvm.shim.fake_memory import PAGE_NBYTES, FakeMemory, Region
from sevkvm.shim.kernel import Kernel
from sevkvm.shim.mini_kvm import MiniKvm, SystemFile, VmFile
from sevkvm.shim.mini_vcpu import VcpuFile
from sevkvm.shim.sevdev import SevDevice
from sevkvm.shim.target import read_exactly

ARGS_NBYTES: Final = 16 * 1024
_CMD_ROOM: Final = 64
_PID: Final = 4242


@dataclass(eq=False)
class SevFile:
    """An open ``/dev/sev``."""

    writable: bool = True


File = SystemFile | VmFile | VcpuFile | SevFile


class FakePort:
    """A pretend process on a pretend host, with its descriptors and its memory."""

    def __init__(
        self,
        kernel: Kernel | None = None,
        *,
        scratch_nbytes: int = 1 << 20,
        cbit_pos: int = DEFAULT_CBIT_POS,
        pid: int = _PID,
    ) -> None:
        self.kernel = Kernel() if kernel is None else kernel
        self.memory = FakeMemory()
        self.mm: object = self.memory
        self.pid = pid
        self.args_hva = self.memory.map(bytearray(ARGS_NBYTES)).hva
        self.scratch_nbytes = scratch_nbytes
        self.scratch_hva = self.memory.map(bytearray(scratch_nbytes)).hva
        self.files: dict[int, File] = {}
        self.ioctls: list[tuple[int, int]] = []  # (fd, request) of every ioctl, in order
        self.memlock_nbytes: int | None = None  # RLIMIT_MEMLOCK; None is CAP_IPC_LOCK
        self._kvm = MiniKvm(self.kernel, cbit_pos, lambda _, fd: self.files.get(fd))
        self._sev = SevDevice(self.kernel)
        self._submitted: tuple[int, int] | None = None
        self._busy_until = 0.0

    # what the kernel model asks of a caller
    def is_sev_device(self, fd: int) -> bool:
        """Is this descriptor an open ``/dev/sev``?"""
        return isinstance(self.files.get(fd), SevFile)

    def may_lock(self, npages: int) -> bool:
        """Caller.may_lock."""
        return self.memlock_nbytes is None or npages <= self.memlock_nbytes // PAGE_NBYTES

    # what the house asks of a port
    def ioctl(self, fd: int, request: int, argument: int = 0) -> int:
        """Issue it; the result (>= 0), or IoctlError with its errno. KVM_RUN: EINTR, as if kicked at once."""
        self.submit(fd, request, argument)
        return self.complete()

    def submit(self, fd: int, request: int, argument: int = 0) -> None:
        """Issue it; what came of it is kept for ``complete``."""
        assert self._submitted is None, "one request at a time"
        self.ioctls.append((fd, request))
        self._submitted = (request, self._ioctl(fd, request, argument))
        self._busy_until = time.monotonic() + self.kernel.firmware.faults.take_seconds()

    def complete(self) -> int:
        """What came of the submitted request: as ``ioctl``."""
        assert self._submitted is not None
        (request, result), self._submitted = self._submitted, None
        time.sleep(max(0.0, self._busy_until - time.monotonic()))
        if result < 0:
            raise errors.IoctlError(abi.request_name(request), -result)
        return result

    def readinto(self, hva: int, buffer: memoryview) -> int:
        """Read memory; the short-read rule of ``memory.source``."""
        return self.memory.readinto(hva, buffer)

    def read_pages(self, hvas: Sequence[int]) -> list[bytes | None]:
        """The page at each of ``hvas``; None where it cannot be read."""
        return [read_exactly(self.memory, hva, PAGE_NBYTES) for hva in hvas]

    def read(self, hva: int, nbytes: int) -> bytes:
        """Exactly nbytes, or MemoryFault."""
        buffer = bytearray(nbytes)
        done = self.memory.readinto(hva, memoryview(buffer))
        if done < nbytes:
            raise errors.MemoryFault("hva", hva + done, reason="not mapped")
        return bytes(buffer)

    def write(self, hva: int, data: bytes) -> None:
        """Write memory, or MemoryFault."""
        done = self.memory.write(hva, data)
        if done < len(data):
            raise errors.MemoryFault("hva", hva + done, reason="not mapped or read-only")

    def operand(self, hva: int, *, write: bool = False) -> int | None:
        """Just there."""
        return hva

    # what tests build with
    def map(self, contents: int | bytes, *, hva: int | None = None, writable: bool = True) -> Region:
        """Map so many bytes of zeros, or these contents, in whole pages."""
        data = bytearray(contents)
        data += bytes(-len(data) % PAGE_NBYTES)
        return self.memory.map(data, hva=hva, writable=writable)

    def install(self, file: File) -> int:
        """The lowest free descriptor >= 3 for a file."""
        fd = next(fd for fd in range(3, 1 << 16) if fd not in self.files)
        self.files[fd] = file
        return fd

    def open_sev(self, *, writable: bool = True) -> int:
        """open("/dev/sev")."""
        return self.install(SevFile(writable))

    def open_kvm(self) -> int:
        """open("/dev/kvm")."""
        return self.install(SystemFile())

    def create_vm(self, vm_type: int = abi.KVM_X86_DEFAULT_VM) -> int:
        """KVM_CREATE_VM."""
        return self.install(VmFile(self.kernel.create_vm(self.mm, vm_type)))

    def create_vcpu(self, vm_fd: int, index: int = 0) -> int:
        """KVM_CREATE_VCPU."""
        return self.ioctl(vm_fd, abi.KVM_CREATE_VCPU, index)

    def sev_op(
        self,
        vm_fd: int,
        command: int,
        data: bytes = b"",
        *,
        sev_fd: int = 0,
        error: int = sev.SEV_RET_NO_FW_CALL,
    ) -> bytes:
        """KVM_MEMORY_ENCRYPT_OP with ``data`` behind the command struct; returns ``data`` as it comes back."""
        where = self.args_hva + _CMD_ROOM
        cmd = sev.KvmSevCmd(command, where if data else 0, error, sev_fd)
        self.write(self.args_hva, cmd.pack().ljust(_CMD_ROOM, b"\0") + data)
        self.ioctl(vm_fd, abi.KVM_MEMORY_ENCRYPT_OP, self.args_hva)
        return self.read(where, len(data))

    def sev_error(self) -> int:
        """The ``error`` field that the last sev_op left."""
        return sev.KvmSevCmd.unpack(self.read(self.args_hva, sev.CMD_NBYTES)).error

    def _ioctl(self, fd: int, request: int, argument: int) -> int:
        file = self.files.get(fd)
        if file is None:
            return -errno.EBADF
        if isinstance(file, SevFile):
            return self._sev.ioctl(self, request, argument, writable=file.writable)
        if isinstance(file, VcpuFile) and request == abi.KVM_RUN:
            file.state.enter()
            return -errno.EINTR if file.vm.mm == self.mm else -errno.EIO
        answer = self._kvm.ioctl(file, self, request, argument)
        return answer if isinstance(answer, int) else self.install(answer)
