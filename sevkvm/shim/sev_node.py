"""The pretend ``/dev/sev`` as a file: a memfd, opened anew for every open, so that each has its own mode."""

from __future__ import annotations

import os
from typing import Final

from sevkvm.shim import proc_fds

PATH: Final = "/dev/sev"
DEVICE: Final = 10, 125  # a misc device; the real one's minor number is dynamic
_KEPT_FLAGS: Final = os.O_ACCMODE | os.O_NONBLOCK


class SevNode:
    """The device node of one host."""

    def __init__(self) -> None:
        self._fd = os.memfd_create("sev", os.MFD_CLOEXEC)
        # what O_PATH opens: another file, which no command goes through (SECCOMP_IOCTL_NOTIF_ADDFD takes no O_PATH)
        self._path_fd = os.memfd_create("sev", os.MFD_CLOEXEC)
        stat = os.fstat(self._fd)
        self.identity = stat.st_dev, stat.st_ino

    def open(self, flags: int) -> int:
        """A descriptor of ours, to be handed to a caller who opened the node with these flags."""
        if flags & os.O_PATH:
            return os.open(f"/proc/self/fd/{self._path_fd}", os.O_RDONLY | os.O_CLOEXEC)
        return os.open(f"/proc/self/fd/{self._fd}", flags & _KEPT_FLAGS | os.O_CLOEXEC)

    def is_open_at(self, tid: int, fd: int) -> bool:
        """Is descriptor ``fd`` of that thread an open file of this node?"""
        return 0 <= fd < 1 << 31 and proc_fds.identity(tid, fd) == self.identity

    @staticmethod
    def is_writable_at(tid: int, fd: int) -> bool:
        """Was it opened for writing?"""
        try:
            with open(f"/proc/{tid}/fdinfo/{fd}", "rb") as file:
                for line in file:
                    if line.startswith(b"flags:"):
                        return int(line[6:], 8) & os.O_ACCMODE != os.O_RDONLY
        except OSError:
            pass
        return False

    def close(self) -> None:
        """The node is gone; descriptors that were handed out live on as dead files."""
        os.close(self._fd)
        os.close(self._path_fd)
