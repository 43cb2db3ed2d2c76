"""The way in: a port into the VMM, and who keeps its vCPUs from running."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

from sevkvm.errors import SevKvmError
from sevkvm.host import procfs, qemuargs
from sevkvm.host.deputy import Deputy
from sevkvm.host.port import LocalPort

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import ExitStack

    from sevkvm.guest import Holder
    from sevkvm.host.port import IoctlPort


class DeputyHold:
    """Holds the vCPU threads through the deputy: those the monitor named, or every thread of the VMM."""

    def __init__(self, deputy: Deputy, tids: Sequence[int]) -> None:
        self._deputy = deputy
        self._tids = tids

    def hold(self) -> int:
        """Stop them; how many are held.

        Thread ids from another pid namespace name nobody here: then every thread is held.
        """
        if self._tids:
            held = self._deputy.hold(self._tids)
            if held == len(self._tids):
                return held
            self._deputy.release()
        return self._deputy.hold()

    def release(self) -> None:
        """Let them run."""
        self._deputy.release()


class NoHold:
    """The VMM itself decides when its vCPUs run; as a library in its process we cannot stop our own threads."""

    def hold(self) -> int:
        """Do nothing."""
        return 0

    def release(self) -> None:
        """Do nothing."""


def sandbox_is_known(pid: int) -> bool:
    """Does a deputy work under this VMM's seccomp filter, should we not be allowed to read it?

    QEMU's strictest lets pass what a deputy calls; the pretend SEV host's kills nobody, and says that it is there.
    """
    with suppress(SevKvmError):  # who may not look will not get in, and attaching says why
        if qemuargs.is_qemu(procfs.cmdline(pid)):
            return True
        return procfs.environment(pid, "SEVKVM_SHIM") is not None
    return False


def enter(stack: ExitStack, pid: int, vcpu_tids: Sequence[int], timeout: float) -> tuple[IoctlPort, Holder]:
    """A port into the VMM: ourselves if that is us, else a deputy thread."""
    if pid == os.getpid():
        return stack.enter_context(LocalPort()), NoHold()
    deputy = stack.enter_context(Deputy(pid, timeout=timeout, trust_sandbox=sandbox_is_known(pid)))
    return deputy, DeputyHold(deputy, vcpu_tids)


def costs(port: IoctlPort) -> dict[str, int]:
    """What the way in has cost so far, by name."""
    if not isinstance(port, Deputy):
        return {}
    info = port.info()
    return {"attach_ns": info.attach_ns, "borrowed_ns": info.borrowed_ns, "ioctls": info.calls}
