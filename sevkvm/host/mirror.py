"""The mirror port: ioctls on a VM of our own that shares the guest's encryption context; the VMM is not entered.

KVM_CAP_VM_COPY_ENC_CONTEXT_FROM gives a VM without vCPUs the ASID and the firmware handle of another one, which may
belong to another process; GUEST_STATUS and the debug commands work on it since Linux 5.15. It takes no ASID of its own.
It keeps the source's context, and the memory that the source has pinned, for as long as it is open: when the VMM ends,
it must be left. Its commands go to the ``/dev/sev`` at the *number* that the source was launched with, in the
descriptor table of whoever calls; here it may be taken, so they are made on a thread that has a table of its own.
Source: Linux arch/x86/kvm/svm/sev.c, sev_vm_copy_enc_context_from (v6.18).
"""

from __future__ import annotations

import errno
import os
import resource
import select
import time
from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Final

from sevkvm import errors, native
from sevkvm.abi import kvm as abi
from sevkvm.host import procfs
from sevkvm.host.deputy import SCRATCH_NBYTES
from sevkvm.host.kvm import VmFd
from sevkvm.host.mapped import MappedVmm
from sevkvm.host.worker import Worker

_MOST_SEV_FDS: Final = 1024  # some VMMs leak hundreds
_GUEST_STATE_INVALID: Final = 0
_COPY_REFUSALS: Final = {
    errno.EINVAL: "it is a mirror itself, or not an encrypted VM",
    errno.EBUSY: "it is being moved",
}


class Mirror(MappedVmm):
    """A context manager that is an IoctlPort: on leaving it the mirror VM is gone. ``vm_fd`` is its descriptor.

    That number, like all that ``ioctl`` takes, is one of the worker's table. ``timeout`` (seconds) bounds each wait.
    Raises MirrorUnavailable, TargetGone, TargetTimeout.
    """

    def __init__(
        self, pid: int, vm_fd: int, *, scratch_nbytes: int = SCRATCH_NBYTES, timeout: float = 5.0
    ) -> None:
        super().__init__(pid, scratch_nbytes=scratch_nbytes)
        self.calls = 0
        self._timeout = timeout
        self._request = 0
        self._worker: Worker | None = None
        self._pidfd = -1
        began_ns = time.monotonic_ns()
        try:
            with ExitStack() as stack:
                self._begin(stack, vm_fd)
            self._require_context()
        except BaseException:
            self.close()
            raise
        self.attach_ns = time.monotonic_ns() - began_ns

    def _begin(self, stack: ExitStack, source_fd: int) -> None:
        """Descriptors of ours are closed by ``stack``: the worker has its own."""
        kvm = self._opened(stack)
        if native.ioctl(kvm, abi.KVM_CHECK_EXTENSION, abi.KVM_CAP_VM_COPY_ENC_CONTEXT_FROM) <= 0:
            raise errors.MirrorUnavailable(
                "this kernel cannot copy an encryption context (Linux 5.15 can, on a processor with SEV)",
                pid=self.pid,
            )
        source = self._copied(stack, source_fd)
        vm = native.ioctl(kvm, abi.KVM_CREATE_VM, abi.KVM_X86_DEFAULT_VM)
        if vm < 0:
            raise errors.MirrorUnavailable(
                f"KVM_CREATE_VM of the mirror failed: {os.strerror(-vm)}", pid=self.pid
            )
        stack.callback(os.close, vm)
        self.write(self.args_hva, abi.EnableCap(abi.KVM_CAP_VM_COPY_ENC_CONTEXT_FROM, 0, source).pack())
        refusal = native.ioctl(vm, abi.KVM_ENABLE_CAP, self.args_hva)
        if refusal < 0:
            why = _COPY_REFUSALS.get(-refusal, os.strerror(-refusal))
            raise errors.MirrorUnavailable(
                f"the kernel does not copy the VM's encryption context: {why}",
                pid=self.pid,
                copy_refused=refusal == -errno.EINVAL,
            )
        numbers = _sev_numbers(self.pid)
        sev = self._copied(stack, numbers[0])
        self._worker = Worker([vm, sev], self._timeout)
        self._settle_in(self._worker, vm, sev, numbers)

    def _opened(self, stack: ExitStack) -> int:
        try:
            self._pidfd = os.pidfd_open(self.pid)
            kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise errors.MirrorUnavailable(
                f"no VM of our own can be made: {error.strerror}", pid=self.pid
            ) from error
        stack.callback(os.close, kvm)
        return kvm

    def _copied(self, stack: ExitStack, fd: int) -> int:
        try:
            copy = native.copy_fd(self.pid, fd)
        except errors.SevKvmError as error:
            raise errors.MirrorUnavailable(
                f"the VMM's descriptors cannot be copied: {error}", pid=self.pid, help=error.help
            ) from error
        stack.callback(os.close, copy)
        return copy

    def _settle_in(self, worker: Worker, vm: int, sev: int, numbers: Sequence[int]) -> None:
        """In the worker's table: ``/dev/sev`` at every number that may be the one, the VM out of the way."""
        highest = max(numbers)
        self.vm_fd, sev = (worker.move_above(fd, highest) for fd in (vm, sev))
        if min(self.vm_fd, sev) < 0:
            limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            raise errors.MirrorUnavailable(
                f"/dev/sev must be descriptor {highest} as in the VMM, and our limit is {limit}",
                pid=self.pid,
                help="raise it: `ulimit -n`",
            )
        for number in numbers:
            worker.copy_to(sev, number)
        worker.close_fd(sev)

    def _require_context(self) -> None:
        """Does the mirror lead to a guest? An SNP guest's has no handle, and the firmware says so without an error."""
        try:
            status = VmFd(self, self.vm_fd).sev_guest_status()
        except errors.FirmwareError as error:
            raise errors.MirrorUnavailable(f"the mirror does not work: {error}", pid=self.pid) from error
        except errors.IoctlError as error:
            why = {
                errno.EINVAL: "this kernel refuses debug commands on mirrors (they came with Linux 5.15)",
                errno.EPERM: "SEV-SNP guests cannot be mirrored",
                errno.EBADF: "the VMM has closed the /dev/sev that it launched the guest with",
            }.get(error.errno, f"the mirror does not work: {error}")
            raise errors.MirrorUnavailable(why, pid=self.pid) from error
        if status.state == _GUEST_STATE_INVALID:
            raise errors.MirrorUnavailable(
                "the firmware knows no guest by the VM's handle: it is an SEV-SNP guest, or not launched yet",
                pid=self.pid,
            )

    # ---- ioctls

    def ioctl(self, fd: int, request: int, argument: int = 0) -> int:
        """ioctl(2) on the worker; TargetTimeout if it does not return in time (it is then still in flight)."""
        self.submit(fd, request, argument)
        return self.complete()

    def submit(self, fd: int, request: int, argument: int = 0) -> None:
        """Start it; nothing else can be issued before ``complete``. TargetGone once the VMM has ended."""
        watch = select.poll()
        watch.register(self._pidfd, select.POLLIN)
        if watch.poll(0):
            raise errors.TargetGone(
                f"process {self.pid} has ended", pid=self.pid, help="`sevkvm list` shows what runs now"
            )
        self._live().start_ioctl(fd, request, argument)
        self._request = request
        self.calls += 1

    def complete(self) -> int:
        """Wait for the submitted ioctl: as ``ioctl``."""
        name = abi.request_name(self._request)
        result = self._live().wait(name)
        if result < 0:
            raise errors.IoctlError(name, -result)
        return result

    def close(self) -> None:
        """Close the mirror VM and unmap everything; safe to call twice.

        A call that does not come back keeps what it works on until it does, or until our process ends.
        """
        worker, self._worker = self._worker, None
        ended = worker is None or worker.close()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
        if ended:
            super().close()
        else:
            _abandoned.append(self)

    def _live(self) -> Worker:
        if self._worker is None:
            raise errors.AttachError("the mirror VM is closed", pid=self.pid)
        return self._worker

    def __enter__(self) -> Mirror:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


_abandoned: list[Mirror] = []


def _sev_numbers(pid: int) -> list[int]:
    numbers = [fd for fd, link in procfs.fd_links(pid).items() if procfs.is_sev_device(link)]
    if not numbers:
        raise errors.MirrorUnavailable(
            "the VMM has closed the /dev/sev that it launched the guest with", pid=pid
        )
    return numbers[:_MOST_SEV_FDS]
