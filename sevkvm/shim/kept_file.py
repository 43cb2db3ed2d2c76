"""A reference to somebody's open file that is no descriptor of ours.

It is kept as a message in flight on a socket. A duplicate in our descriptor table would keep the file just as
well, but whoever searches /proc for the VMs of this host would then find each one twice.
"""

from __future__ import annotations

import array
import os
import socket

from sevkvm.native import lib


class KeptFile:
    """Takes over ``fd``, a descriptor of ours, and keeps its file open until close()."""

    def __init__(self, fd: int) -> None:
        sender, self._socket = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with sender:
            sender.sendmsg([b"f"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))])
        os.close(fd)

    def is_at(self, tid: int, fd: int) -> bool:
        """Is descriptor ``fd`` of that thread this very file?"""
        return 0 <= fd < 1 << 31 and bool(lib.sk_kept_is_at(self._socket.fileno(), tid, fd))

    def close(self) -> None:
        """Let the file go."""
        self._socket.close()
