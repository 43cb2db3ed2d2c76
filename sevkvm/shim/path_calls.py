"""The trapped system calls that name a path: open, readlink, and what asks whether a file is there."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from typing import Final

from sevkvm.shim import notify, proc_fds
from sevkvm.shim.host_files import HostFiles
from sevkvm.shim.sev_node import PATH as SEV_PATH
from sevkvm.shim.sev_node import SevNode
from sevkvm.shim.supervised import SupervisedCaller

_PATH_NBYTES: Final = 64
_FD_LINK: Final = re.compile(r"/proc/(self|thread-self|\d+)(?:/task/(\d+))?/fd/(\d+)")
_OPENS: Final = (notify.SYS_OPEN, notify.SYS_OPENAT, notify.SYS_OPENAT2)
_READLINKS: Final = (notify.SYS_READLINK, notify.SYS_READLINKAT)
_STATS: Final = (notify.SYS_STAT, notify.SYS_LSTAT, notify.SYS_NEWFSTATAT)
_ACCESSES: Final = (notify.SYS_ACCESS, notify.SYS_FACCESSAT, notify.SYS_FACCESSAT2)
_GETXATTRS: Final = (notify.SYS_GETXATTR, notify.SYS_LGETXATTR)
_WITH_DIRECTORY: Final = (
    notify.SYS_OPENAT,
    notify.SYS_OPENAT2,
    notify.SYS_READLINKAT,
    notify.SYS_NEWFSTATAT,
    notify.SYS_STATX,
    notify.SYS_FACCESSAT,
    notify.SYS_FACCESSAT2,
)

Open = Callable[
    [str, int], int | None
]  # a descriptor of ours for (path, flags); -errno; None: the kernel's affair
LinkOf = Callable[[tuple[int, int]], str | None]  # the name of a file of ours


class PathCalls:
    """Answers them on one host; ``open_kvm`` and ``link_of`` know the files of its KVM."""

    def __init__(self, node: SevNode, files: HostFiles, open_kvm: Open, link_of: LinkOf) -> None:
        self._node = node
        self._files = files
        self._open_kvm = open_kvm
        self._link_of = link_of

    def handle(self, caller: SupervisedCaller) -> None:
        """Answer a call, or let the kernel carry it out."""
        number = caller.call.number
        # without the descriptor of a directory: the path, then what each call takes
        arguments = caller.call.args[1:] if number in _WITH_DIRECTORY else caller.call.args
        path = _string(caller, arguments[0])
        if number in _OPENS:
            self._open(caller, path, arguments)
            return
        work = self._readlink if number in _READLINKS else self._stat
        _answer(caller, work(caller, path, arguments))

    def _open(self, caller: SupervisedCaller, path: str, arguments: tuple[int, ...]) -> None:
        flags: int | None = arguments[1] & 0xFFFFFFFF
        if caller.call.number == notify.SYS_OPENAT2:  # struct open_how begins with the flags
            flags = _first_word(caller, arguments[1])
        fd = None if flags is None else self._descriptor(path, flags)
        if flags is None or fd is None or fd < 0:
            _answer(caller, fd)
            return
        try:
            caller.call.answer_fd(fd, cloexec=bool(flags & os.O_CLOEXEC))
        finally:
            os.close(fd)

    def _descriptor(self, path: str, flags: int) -> int | None:
        if path == SEV_PATH:
            return self._node.open(flags)
        fd = self._open_kvm(path, flags)
        return self._files.open(path, flags) if fd is None else fd

    def _readlink(self, caller: SupervisedCaller, path: str, arguments: tuple[int, ...]) -> int | None:
        call = caller.call
        if call.number == notify.SYS_READLINKAT and path.isdigit():
            path = f"{proc_fds.link(caller.tid, call.args[0] & 0xFFFFFFFF)}/{path}"
        name = self._link_name(caller, path)
        if name is None:
            return None
        text = name.encode()[: arguments[2]]
        return len(text) if caller.write(arguments[1], text) == len(text) else -errno.EFAULT

    def _link_name(self, caller: SupervisedCaller, path: str) -> str | None:
        match = _FD_LINK.fullmatch(path)
        if match is None:
            return None
        process, task, fd = match.groups()
        owner = {"self": str(caller.pid), "thread-self": str(caller.tid)}.get(process, process)
        identity = proc_fds.identity(int(task or owner), int(fd))
        if identity is None or int(owner) == os.getpid():
            return None  # our own references are not for anybody who searches /proc for VMs
        return SEV_PATH if identity == self._node.identity else self._link_of(identity)

    def _stat(self, caller: SupervisedCaller, path: str, arguments: tuple[int, ...]) -> int | None:
        file = self._files.get(path)
        if file is None:
            return None
        number = caller.call.number
        if number in _ACCESSES:
            return file.access(arguments[1])
        if number in _GETXATTRS:
            return -errno.ENODATA
        if number in _STATS:
            data, hva = file.stat(self._files.born), arguments[1]
        elif number == notify.SYS_STATX:
            data, hva = file.statx(self._files.born), arguments[3]
        else:
            return 0  # the list of extended attributes is empty
        return 0 if caller.write(hva, data) == len(data) else -errno.EFAULT


def _answer(caller: SupervisedCaller, result: int | None) -> None:
    if result is None:
        caller.call.proceed()
    else:
        caller.call.answer(result)


def _first_word(caller: SupervisedCaller, hva: int) -> int | None:
    data = bytearray(8)
    return int.from_bytes(data, "little") if caller.readinto(hva, memoryview(data)) == 8 else None


def _string(caller: SupervisedCaller, hva: int) -> str:
    """The path at ``hva``, if it is no longer than those that matter here; else some other text."""
    buffer = bytearray(_PATH_NBYTES)
    length = caller.readinto(hva, memoryview(buffer))
    return bytes(buffer[:length]).split(b"\0")[0].decode(errors="replace")
