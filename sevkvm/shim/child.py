"""A subprocess whose main thread our own process may trace now and then (retype.py).

wait(2) in any thread of ours would see the stops of that thread and take them for the end of the process. A pidfd
becomes readable only at the real end, so it is asked first.
"""

from __future__ import annotations

import os
import select
import subprocess
from typing import Any


class Child(subprocess.Popen[Any]):
    """A Popen that waits through a pidfd."""

    _pidfd = -1  # Popen's own constructor may fail, and its destructor runs all the same

    def __init__(self, args: list[str], **settings: Any) -> None:
        super().__init__(args, **settings)
        self._pidfd = os.pidfd_open(self.pid)

    def _has_ended(self, timeout: float | None) -> bool:
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return bool(poll.poll(None if timeout is None else max(timeout, 0) * 1000))

    def poll(self) -> int | None:
        """As Popen's."""
        if self.returncode is None and self._has_ended(0):
            self._reap()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """As Popen's."""
        if self.returncode is None:
            if not self._has_ended(timeout):
                assert timeout is not None
                raise subprocess.TimeoutExpired(self.args, timeout)
            self._reap()
        return int(self.returncode)

    def _reap(self) -> None:
        super().wait()
        self._forget()

    def _forget(self) -> None:
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1

    def __del__(self) -> None:
        self._forget()
        super().__del__()
