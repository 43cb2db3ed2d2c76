"""stdout behind a bounded queue: whoever reads a guest is not held up by whoever reads us."""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

CAPACITY_NBYTES = 32 << 20  # a Linux guest's whole list is one or two of them
_WRITE_NBYTES = 1 << 20

Write = Callable[[bytes], object]


def stdout_write() -> Write:
    """What writes all of some bytes to stdout, past Python's buffers: a thread stuck in it holds no lock of theirs."""
    if sys.stdout is None:
        return len  # started with a closed stdout: like print(), say nothing
    sys.stdout.flush()
    try:
        fd = sys.stdout.fileno()
    except (OSError, ValueError):  # replaced by an object in memory
        return sys.stdout.buffer.write

    def write(data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]

    return write


class Outlet:
    """A queue of at most ``capacity`` bytes (or one chunk, if that is larger) and a thread that writes them.

    A context manager. Leaving it waits until all is written, an error's way out too; only an interruption drops what
    is queued. The thread never touches the guest: ptrace belongs to the thread that attached.
    """

    def __init__(self, write: Write, capacity: int = CAPACITY_NBYTES) -> None:
        self._write = write
        self._capacity = capacity
        self._changed = threading.Condition()
        self._queue: deque[bytes] = deque()
        self._nbytes = 0  # queued or being written
        self._closing = False
        self._ended = False
        self._error: OSError | None = None

    def __enter__(self) -> Outlet:
        # a daemon: at exit nobody waits for a write that a reader keeps from returning
        threading.Thread(target=self._run, name="stdout", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._closing = True
            if kind is not None and not issubclass(kind, Exception):
                self._queue.clear()
                self._changed.notify_all()
                return
            self._changed.notify_all()
            while not self._ended:
                self._changed.wait()
        if kind is None and self._error is not None:
            raise self._error

    def has_room(self, nbytes: int) -> bool:
        """Would ``put`` of so many bytes return at once?"""
        with self._changed:
            return self._ended or not self._nbytes or self._nbytes + nbytes <= self._capacity

    def put(self, chunk: bytes) -> None:
        """Queue a chunk, when there is room; OSError if writing has failed."""
        if not chunk:
            return
        with self._changed:
            while not self._ended and self._nbytes and self._nbytes + len(chunk) > self._capacity:
                self._changed.wait()
            if self._error is not None:
                raise self._error
            self._queue.append(chunk)
            self._nbytes += len(chunk)
            self._changed.notify_all()

    def _run(self) -> None:
        try:
            while chunks := self._take():
                self._write(b"".join(chunks))
                with self._changed:
                    self._nbytes -= sum(map(len, chunks))
                    self._changed.notify_all()
        except OSError as error:
            self._error = error
        except ValueError as error:  # a stdout object that was closed meanwhile
            self._error = OSError(str(error))
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _take(self) -> list[bytes]:
        """The next chunks, about a MiB of them; none at the end."""
        with self._changed:
            while not self._queue and not self._closing:
                self._changed.wait()
            chunks, nbytes = [], 0
            with suppress(IndexError):
                while nbytes < _WRITE_NBYTES:
                    chunks.append(self._queue.popleft())
                    nbytes += len(chunks[-1])
            return chunks
