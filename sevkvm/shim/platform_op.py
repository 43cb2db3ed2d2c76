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
from sevkvm.shim.sev_op import Errno, UserCopies, reach_firmware
from sevkvm.shim.target import Caller

_Result = TypeVar("_Result")


@dataclass
class PlatformOp(UserCopies):
    """The command as the driver carries it out; ``error`` is the struct's in/out field."""

    caller: Caller
    firmware: Firmware
    data: int
    error: int
    writable: bool
    generation: Generation

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
