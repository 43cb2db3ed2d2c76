"""One SEV_ISSUE_CMD under way: the tools that its handlers share (drivers/crypto/ccp/sev-dev.c)."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from sevkvm.abi.sev import FwStatus, PlatformState
from sevkvm.shim.firmware import Firmware
from sevkvm.shim.generation import Generation
from sevkvm.shim.sev_op import BLOB_MAX_NBYTES, Errno, reach_firmware
from sevkvm.shim.target import Caller, read_exactly

_Result = TypeVar("_Result")


@dataclass
class PlatformOp:
    """The command as the driver carries it out; ``error`` is the struct's in/out field."""

    caller: Caller
    firmware: Firmware
    data: int
    error: int
    writable: bool
    generation: Generation

    def copy_from_user(self, hva: int, nbytes: int) -> bytes:
        """``nbytes`` of the caller's memory, or EFAULT."""
        data = read_exactly(self.caller.memory, hva, nbytes)
        if data is None:
            raise Errno(errno.EFAULT)
        return data

    def copy_to_user(self, hva: int, data: bytes) -> None:
        """Into the caller's memory, or EFAULT."""
        if self.caller.memory.write(hva, data) < len(data):
            raise Errno(errno.EFAULT)

    def copy_blob(self, hva: int, nbytes: int) -> bytes:
        """psp_copy_user_blob: EINVAL for none, or one that is too long."""
        if not hva or not 0 < nbytes <= BLOB_MAX_NBYTES:
            raise Errno(errno.EINVAL)
        return self.copy_from_user(hva, nbytes)

    def require_writable(self) -> None:
        """EPERM unless the device was opened for writing."""
        if not self.writable:
            raise Errno(errno.EPERM)

    def issue(self, command: Callable[[], _Result]) -> _Result:
        """__sev_do_cmd_locked: a status becomes EIO and ``error``, which success sets to 0."""
        return reach_firmware(self, command)

    @contextmanager
    def initialised(self) -> Iterator[None]:
        """Bring the platform up if it is down; new kernels then take it down again."""
        if self.firmware.state != PlatformState.UNINIT:
            yield
        elif self.generation == "old":
            self.issue(self.firmware.init)
            yield
        else:
            before = self.error
            try:
                self.issue(self.firmware.init)
            except Errno:
                self.error = FwStatus.INVALID_PLATFORM_STATE
                raise
            self.error = before
            try:
                yield
            finally:
                self.firmware.shutdown()
