"""A thread that runs a vCPU, and how it is stopped.

Source: Linux include/uapi/linux/kvm.h, ``struct kvm_run`` (v6.18).
"""

from __future__ import annotations

import errno
import mmap
import signal
import struct
import sys
import threading
from dataclasses import dataclass
from typing import Final

from sevkvm import native
from sevkvm.abi.kvm import KVM_RUN

_IMMEDIATE_EXIT_OFFSET: Final = 1
_EXIT_REASON = struct.Struct("<I")
_EXIT_REASON_OFFSET: Final = 8
_EXIT_HLT: Final = 5
_EXIT_INTR: Final = 10
KICK_SIGNAL: Final = signal.SIGUSR1
_KICKS, _KICK_SECONDS = 50, 0.05


@dataclass(frozen=True)
class Rhythm:
    """What to do when the guest halts: rest so long, then enter again; ``bursts`` times in all, None: for ever."""

    rest_seconds: float = 0.01
    bursts: int | None = None


class VcpuThread:
    """Runs ``fd`` until :meth:`stop`, or until the guest does something that the lab does not emulate.

    A halt is such a thing unless there is a ``rhythm``: then it is the end of a burst. After the last one the thread
    only waits.

    Create and stop it on the main thread, several in reverse order: while it lives, KICK_SIGNAL only interrupts
    KVM_RUN.
    """

    def __init__(self, fd: int, index: int, run_nbytes: int, rhythm: Rhythm | None = None) -> None:
        self.fd, self.index, self.rhythm = fd, index, rhythm
        self.bursts = 0
        self._run = mmap.mmap(fd, run_nbytes)
        self._stopping = threading.Event()
        self._old_handler = signal.signal(KICK_SIGNAL, lambda *_: None)
        # Daemon: a KVM_RUN that cannot be interrupted must not keep the process alive.
        self._thread = threading.Thread(target=self._loop, name=f"vcpu {index}", daemon=True)
        self._thread.start()

    def _loop(self) -> None:
        while not self._stopping.is_set():
            result = native.ioctl(self.fd, KVM_RUN)
            if result in (-errno.EINTR, -errno.EAGAIN):
                continue
            (reason,) = _EXIT_REASON.unpack_from(self._run, _EXIT_REASON_OFFSET)
            if result == 0 and reason == _EXIT_INTR:
                continue
            if result == 0 and reason == _EXIT_HLT and self.rhythm:
                self.bursts += 1
                over = self.bursts == self.rhythm.bursts
                self._stopping.wait(None if over else self.rhythm.rest_seconds)
                continue
            why = errno.errorcode.get(-result, str(result)) if result else f"exit reason {reason}"
            print(f"sevkvm lab: vCPU {self.index} stopped: {why}", file=sys.stderr, flush=True)
            return

    def join(self, seconds: float) -> bool:
        """Wait until the guest has left for good; False if it still runs after ``seconds``."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def stop(self) -> bool:
        """Ask the vCPU out of the guest; False if the thread did not leave KVM_RUN in some seconds."""
        self._stopping.set()
        self._run[_IMMEDIATE_EXIT_OFFSET] = 1
        for _ in range(_KICKS):
            if not self._thread.is_alive():
                break
            signal.pthread_kill(self._thread.ident or 0, KICK_SIGNAL)
            self._thread.join(_KICK_SECONDS)
        if self._thread.is_alive():
            return False
        self._run.close()
        signal.signal(KICK_SIGNAL, self._old_handler)
        return True
