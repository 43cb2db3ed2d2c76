"""The deputy port: ioctls issued by a thread that we add to the VMM.

Everything delicate is in csrc/sk_deputy.c. ptrace belongs to the thread that opened the deputy: use it from there.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple

from sevkvm import errors, native
from sevkvm.abi.kvm import request_name
from sevkvm.host import procfs, qemuargs
from sevkvm.host.ramview import RamView

if TYPE_CHECKING:
    from sevkvm.native import DeputyHandle

SCRATCH_NBYTES = 4 << 20  # two halves: one is filled while the other is read
_MAPPED_NBYTES = 64 << 10  # for less, mapping it costs more than it saves
_WAIT_SLICE_MS = 100  # between slices a pending Ctrl-C is taken


class DeputyInfo(NamedTuple):
    """What attaching cost, and where things are in the target (``struct sk_deputy_info``)."""

    pid: int
    tid: int
    borrowed_tid: int
    leftovers: int
    args_hva: int
    args_nbytes: int
    scratch_hva: int
    scratch_nbytes: int
    borrowed_ns: int
    attach_ns: int
    calls: int
    filters: int
    trusted: int


def sandbox_is_known(pid: int, proc: Path = procfs.PROC) -> bool:
    """Does a deputy work under this VMM's seccomp filter, should we not be allowed to read it?

    QEMU's strictest lets pass what a deputy calls; the pretend SEV host's kills nobody, and says that it is there.
    """
    with suppress(errors.SevKvmError):  # who may not look will not get in, and attaching says why
        if qemuargs.is_qemu(procfs.cmdline(pid, proc)):
            return True
        return procfs.environment(pid, "SEVKVM_SHIM", proc) is not None
    return False


class Deputy:
    """A context manager that is an IoctlPort: on leaving it nothing of ours remains in the process.

    ``timeout`` (seconds) bounds each wait. The VMM's seccomp filters are asked before it is made to call anything;
    where they cannot be read (that takes CAP_SYS_ADMIN) the VMM is not entered unless they are known to let a deputy
    work: ``trust_sandbox``, or if that is None :func:`sandbox_is_known`.
    Raises AttachError, VmNotFound or TargetTimeout.
    """

    def __init__(
        self,
        pid: int,
        *,
        scratch_nbytes: int = SCRATCH_NBYTES,
        timeout: float = 5.0,
        trust_sandbox: bool | None = None,
    ) -> None:
        self.pid = pid
        self._timeout = timeout
        self._request = 0
        if trust_sandbox is None:
            trust_sandbox = sandbox_is_known(pid)
        self._handle: DeputyHandle | None = native.deputy_open(
            pid, scratch_nbytes, int(timeout * 1000), trust_sandbox=trust_sandbox
        )
        info = self.info()
        self.args_hva = info.args_hva
        self.scratch_hva = info.scratch_hva
        self.scratch_nbytes = info.scratch_nbytes

    def _live(self) -> DeputyHandle:
        if self._handle is None:
            raise errors.AttachError("the deputy has left the process", pid=self.pid)
        return self._handle

    def info(self) -> DeputyInfo:
        """Where things are and what it cost so far."""
        return DeputyInfo(**native.deputy_info(self._live()))

    def ioctl(self, fd: int, request: int, argument: int = 0) -> int:
        """ioctl(2) in the VMM; TargetTimeout if it does not return in time (it is then still in flight)."""
        self.submit(fd, request, argument)
        return self.complete()

    def submit(self, fd: int, request: int, argument: int = 0) -> None:
        """Start ioctl(2) in the VMM; nothing else can be issued before ``complete``."""
        native.deputy_start(self._live(), fd, request, argument)
        self._request = request

    def complete(self) -> int:
        """Wait for the submitted ioctl: as ``ioctl``."""
        handle = self._live()
        deadline = time.monotonic() + self._timeout
        result = native.deputy_wait(handle, _WAIT_SLICE_MS)
        while result is None:
            if time.monotonic() >= deadline:
                raise errors.TargetTimeout(
                    f"{request_name(self._request)} has not returned after {self._timeout:g} s",
                    help="a vCPU that runs holds its own lock, and the secure processor may be slow; try --timeout",
                )
            result = native.deputy_wait(handle, _WAIT_SLICE_MS)
        if result < 0:
            raise errors.IoctlError(request_name(self._request), -result)
        return result

    def readinto(self, hva: int, buffer: memoryview) -> int:
        """Read the VMM's memory; the short-read rule of ``memory.source``."""
        if (
            len(buffer) >= _MAPPED_NBYTES
            and self._in_scratch(hva, len(buffer))
            and self._view.copy(hva, buffer)
        ):
            return len(buffer)
        return native.read_into(self.pid, hva, buffer)

    def _in_scratch(self, hva: int, nbytes: int) -> bool:
        return self.scratch_hva <= hva and hva + nbytes <= self.scratch_hva + self.scratch_nbytes

    @cached_property
    def _view(self) -> RamView:
        """The scratch area, mapped here as well if we may (CAP_CHECKPOINT_RESTORE)."""
        view = RamView(self.pid)
        with suppress(errors.SevKvmError):
            view.add(self.scratch_hva, self.scratch_nbytes)
        return view

    def read_pages(self, hvas: Sequence[int]) -> list[bytes | None]:
        """The page of 4096 bytes at each of ``hvas``, read together; None where it cannot be read."""
        return native.read_pages(self.pid, hvas)

    def read(self, hva: int, nbytes: int) -> bytes:
        """Exactly nbytes, or MemoryFault."""
        return native.read(self.pid, hva, nbytes)

    def write(self, hva: int, data: bytes) -> None:
        """Write the VMM's memory, respecting its page protection; or MemoryFault."""
        native.write(self.pid, hva, data)

    def operand(self, hva: int, *, write: bool = False) -> int | None:
        """Just there: the deputy is a thread of the VMM."""
        return hva

    def hold(self, tids: Iterable[int] = ()) -> int:
        """Keep these threads from running, or with none given every thread of the VMM; how many are held."""
        return native.deputy_hold(self._live(), list(tids), int(self._timeout * 1000))

    def release(self) -> None:
        """Let all held threads run."""
        if self._handle is not None:
            native.deputy_release(self._handle)

    def close(self) -> None:
        """Leave the process; safe to call twice."""
        if self._handle is not None:
            handle, self._handle = self._handle, None
            native.deputy_close(handle, int(self._timeout * 1000))
        if "_view" in self.__dict__:  # last: nothing of ours that fails may keep the deputy there
            self._view.close()

    def __enter__(self) -> Deputy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
