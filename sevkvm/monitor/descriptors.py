"""File descriptors that a client has passed (SCM_RIGHTS), until it names them with ``getfd``."""

from __future__ import annotations

import os
from typing import Final

from sevkvm.monitor.qmpproblem import QmpProblem

MOST_NAMED: Final = 16


class Descriptors:
    """As QEMU: of those passed and not yet named the last one counts. All are ours to close."""

    def __init__(self) -> None:
        self._waiting: int | None = None
        self._named: dict[str, int] = {}

    def passed(self, fds: list[int]) -> None:
        """They came with what was just received."""
        for fd in fds:
            if self._waiting is not None:
                os.close(self._waiting)
            self._waiting = fd

    def name(self, name: str) -> None:
        """``getfd``: the waiting one gets this name, which another may lose."""
        if self._waiting is None:
            raise QmpProblem("No file descriptor supplied via SCM_RIGHTS")
        if name[:1].isdigit():
            raise QmpProblem("Parameter 'fdname' expects a name not starting with a digit")
        if name not in self._named and len(self._named) >= MOST_NAMED:
            raise QmpProblem(f"more than {MOST_NAMED} descriptors")
        if name in self._named:
            os.close(self._named[name])
        self._named[name], self._waiting = self._waiting, None

    def take(self, name: str) -> int:
        """The descriptor, which its name no longer stands for; the caller closes it."""
        fd = self._named.pop(name, None)
        if fd is None:
            raise QmpProblem(f"File descriptor named '{name[:100]}' has not been found")
        return fd

    def close(self) -> None:
        """All that are left."""
        if self._waiting is not None:
            os.close(self._waiting)
        for fd in self._named.values():
            os.close(fd)
        self._waiting, self._named = None, {}
