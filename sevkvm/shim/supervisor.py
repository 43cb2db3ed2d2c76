"""Door 1: a pretend SEV host around real programs, at the system-call boundary.

    with SevHost() as host:
        process = host.popen(["qemu-system-x86_64", ...])   # a subprocess.Popen
        ...
    host.log.names()                                        # what the programs asked for
    host.kernel.firmware.counts["DBG_DECRYPT"]

Programs started with ``popen``, and whatever they start, see ``/dev/sev`` and a KVM that does SEV; they share one
kernel and one firmware. They run with no_new_privs (no setuid). On leaving the ``with`` they are ended. If this
process is killed, the system calls that it answers (among them every open) fail with ENOSYS in them.
"""

from __future__ import annotations

import functools
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, Final, Literal, TextIO

from sevkvm import errors
from sevkvm.shim import real_system
from sevkvm.shim.cpuid import DEFAULT_CBIT_POS
from sevkvm.shim.dispatch import Dispatcher, HostKvm
from sevkvm.shim.faults import Faults
from sevkvm.shim.firmware import Firmware
from sevkvm.shim.generation import Generation
from sevkvm.shim.kernel import Kernel
from sevkvm.shim.log import CommandLog
from sevkvm.shim.notify import Listener
from sevkvm.shim.real_host import RealHost
from sevkvm.shim.stand_in_host import StandInHost
from sevkvm.shim.starter import start_program

KvmMode = Literal["auto", "real", "standin"]

_TICK_SECONDS: Final = 0.005
_IDLE_SECONDS: Final = 1.0
_END_SECONDS: Final = 5.0


class SevHost:
    """A pretend SEV host; a context manager. ``kvm``: the real one, the stand-in, or whichever can be had.

    ``generation``: whose mistakes the SEV debug commands make, see generation.py; ``faults``: what fails, and how long
    it takes; ``trap_stat``: do stat(2) and access(2) know ``/dev/sev`` and kvm_amd's module parameters? Every path
    that a program asks about then costs about 25 microseconds, as every open does.
    """

    def __init__(
        self,
        *,
        kvm: KvmMode = "auto",
        cbit_pos: int = DEFAULT_CBIT_POS,
        log: TextIO | None = None,
        firmware: Firmware | None = None,
        generation: Generation = "new",
        faults: Faults | None = None,
        trap_stat: bool = True,
        blocked_signals: Iterable[int] | None = None,
    ) -> None:
        self.log = CommandLog(log)
        self.kernel = Kernel(firmware, self.log, generation=generation, faults=faults)
        self.standin = kvm == "standin" or (kvm == "auto" and not real_system.usable())
        if not self.standin and not real_system.usable():
            raise errors.PlatformUnsupported(
                f"{real_system.KVM_PATH} cannot be used", help="let the shim stand in for it: --kvm standin"
            )
        host_kvm: HostKvm = (StandInHost if self.standin else RealHost)(self.kernel, cbit_pos)
        self._dispatcher = Dispatcher(self.kernel, host_kvm, trap_stat=trap_stat)
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, []) if blocked_signals is None else blocked_signals
        self._config = json.dumps(
            {
                "filter": self._dispatcher.filter,
                "blocked": [int(number) for number in blocked],
            }
        )
        self._listeners: dict[int, Listener] = {}
        self._epoll = select.epoll()
        self._stop_reader, self._stop_writer = os.pipe2(os.O_CLOEXEC)
        self._epoll.register(self._stop_reader, select.EPOLLIN)
        self._processes: list[subprocess.Popen[Any]] = []
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name="sev host", daemon=True)
        self._thread.start()

    def __enter__(self) -> SevHost:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def popen(self, argv: Sequence[str | os.PathLike[str]], **settings: Any) -> subprocess.Popen[Any]:
        """Start a program on this host; ``settings`` are Popen's, but for ``shell``, ``executable`` and ``preexec_fn``.

        Returns once the program is executed; OSError if it cannot be, AlreadySupervised if this process is itself
        on such a host.
        """
        process = start_program(argv, self._config, self._listen, settings)
        self._processes = [each for each in self._processes if each.poll() is None]
        self._processes.append(process)
        return process

    def _listen(self, fd: int) -> None:
        self._listeners[fd] = Listener(fd, self._dispatcher.paths)
        self._epoll.register(fd, select.EPOLLIN)

    @property
    def busy(self) -> bool:
        """Does any program live on this host, started by popen or by such a program?"""
        return bool(self._listeners)

    def close(self) -> None:
        """End what popen started, stop serving, forget every guest. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        for process in self._processes:
            if process.poll() is None:
                process.terminate()
        deadline = time.monotonic() + _END_SECONDS
        for process in self._processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        os.close(self._stop_writer)
        self._thread.join()
        for listener in list(self._listeners.values()):
            listener.close()
        self._listeners.clear()
        self._epoll.close()
        os.close(self._stop_reader)
        self._dispatcher.close()
        self.log.finish(self.kernel.firmware.counts)

    def _serve(self) -> None:
        housekeeping = time.monotonic() + _IDLE_SECONDS
        while True:
            waiting = self._dispatcher.kvm.parking.has_waiting
            due = self.kernel.pace.next_seconds
            patience = _TICK_SECONDS if waiting else _IDLE_SECONDS
            for fd, events in self._epoll.poll(patience if due is None else min(due, patience)):
                if fd == self._stop_reader:
                    return
                self._guarded(functools.partial(self._receive, fd, events))
            if due is not None:
                self._guarded(self.kernel.pace.advance)
            if waiting:
                self._guarded(self._dispatcher.tick)
            if time.monotonic() > housekeeping:
                self._guarded(self._dispatcher.forget_dead)
                housekeeping = time.monotonic() + _IDLE_SECONDS

    def _receive(self, fd: int, events: int) -> None:
        listener = self._listeners[fd]
        if not events & select.EPOLLIN:  # EPOLLHUP: nobody has this filter any more
            self._epoll.unregister(fd)
            del self._listeners[fd]
            listener.close()
            return
        call = listener.receive()
        if call is not None and not self._guarded(lambda: self._dispatcher.handle(call)):
            call.proceed()

    def _guarded(self, work: Callable[[], object]) -> bool:
        """A mistake of ours is told, and must not leave every program on this host waiting for ever."""
        try:
            work()
        except Exception:
            traceback.print_exc(file=sys.stderr)
            return False
        return True
