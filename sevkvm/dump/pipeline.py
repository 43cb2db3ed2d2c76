"""Work in threads, delivered in order: one thread reads, the others compress, whoever is ready writes.

The reading thread, which owns ptrace, waits only when ``depth`` jobs are under way: that bounds the memory.
"""

from __future__ import annotations

import signal
import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from sevkvm import errors

_Job = TypeVar("_Job")
_Done = TypeVar("_Done")
_LOOK_SECONDS = 1.0  # how long a waiting thread goes without looking around


class Pipeline(Generic[_Job, _Done]):
    """``work(number, job)`` in any order, at once; ``deliver(done)`` in the order of ``put``, one at a time.

    ``new_work`` is called once in each thread and returns that thread's ``work``. What either raises comes out of the
    next call; then nothing more is delivered.
    """

    def __init__(
        self,
        new_work: Callable[[], Callable[[int, _Job], _Done]],
        deliver: Callable[[_Done], None],
        *,
        workers: int,
        depth: int,
    ) -> None:
        self._new_work = new_work
        self._deliver = deliver
        self._depth = depth
        self._changed = threading.Condition()
        self._jobs: deque[tuple[int, _Job]] = deque()
        self._done: dict[int, _Done] = {}
        self._put_count = 0
        self._delivered_count = 0
        self._delivering = False
        self._closed = False
        self._failure: BaseException | None = None
        self._threads = [
            threading.Thread(target=self._run, name=f"dump-{number}", daemon=True)
            for number in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    def put(self, job: _Job) -> None:
        """Hand over a job; waits while ``depth`` are under way."""
        with self._changed:
            self._wait_until(lambda: self._put_count - self._delivered_count < self._depth)
            self._jobs.append((self._put_count, job))
            self._put_count += 1
            self._changed.notify()

    def finish(self) -> None:
        """Wait until everything is delivered."""
        with self._changed:
            self._wait_until(lambda: self._delivered_count == self._put_count)

    def close(self) -> None:
        """End the threads; what is not delivered is dropped. After it, ``deliver`` is not called any more."""
        with self._changed:
            self._closed = True
            self._jobs.clear()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _wait_until(self, condition: Callable[[], bool]) -> None:
        while self._failure is None and not condition():
            self._changed.wait(_LOOK_SECONDS)
            if self._failure is None and not any(thread.is_alive() for thread in self._threads):
                raise errors.SevKvmError("the dump's threads ended early")
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        # Signals are the main thread's: one that lands here would not end the system call that it waits in.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            work = self._new_work()
            while (taken := self._take()) is not None:
                number, job = taken
                done = work(number, job)
                with self._changed:
                    self._done[number] = done
                self._deliver_in_order()
        except BaseException as failure:
            with self._changed:
                self._failure = self._failure or failure
                self._changed.notify_all()

    def _take(self) -> tuple[int, _Job] | None:
        with self._changed:
            while not self._jobs and not self._closed and self._failure is None:
                self._changed.wait(_LOOK_SECONDS)
            return self._jobs.popleft() if self._jobs and self._failure is None else None

    def _deliver_in_order(self) -> None:
        """Deliver what is next, unless another thread is at it: that one will take ours too."""
        while True:
            with self._changed:
                number = self._delivered_count
                if self._delivering or self._closed or self._failure is not None or number not in self._done:
                    return
                self._delivering = True
                done = self._done.pop(number)
            self._deliver(done)
            with self._changed:
                self._delivering = False
                self._delivered_count += 1
                self._changed.notify_all()
