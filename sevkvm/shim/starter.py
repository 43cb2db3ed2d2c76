"""Starting a program on a pretend SEV host: the supervisor's half of launch.py."""

from __future__ import annotations

import array
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import sevkvm
from sevkvm import errors
from sevkvm.shim.child import Child
from sevkvm.shim.launch import HANDSHAKE_SECONDS
from sevkvm.shim.notify import AlreadySupervised

_BOOT: Final = "import sys; sys.path.insert(0, sys.argv.pop(1)); from sevkvm.shim.launch import main; main()"
_ROOT: Final = str(Path(sevkvm.__file__).parents[1])
_INT_NBYTES: Final = array.array("i").itemsize
_UNFIT: Final = {"shell", "executable", "preexec_fn"}


def start_program(
    argv: Sequence[str | os.PathLike[str]],
    config: str,
    listen: Callable[[int], None],
    settings: dict[str, Any],
) -> subprocess.Popen[Any]:
    """Start it with Popen's ``settings`` and launch.py's ``config``; returns once it is executed.

    ``listen`` is given the listener and must serve it from then on: the launcher opens files before it is done.
    """
    if unfit := _UNFIT & settings.keys():
        raise TypeError(f"SevHost.popen does not take {', '.join(sorted(unfit))}")
    settings = dict(settings)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        with theirs:
            inherited = (*settings.pop("pass_fds", ()), theirs.fileno())
            launcher = [sys.executable, "-I", "-c", _BOOT, _ROOT, str(theirs.fileno()), config, "--"]
            words = [*launcher, *(os.fspath(word) for word in argv)]
            process = Child(words, pass_fds=inherited, **settings)
        try:
            _shake_hands(ours, process, os.fspath(argv[0]), listen)
        except BaseException:
            process.kill()
            process.wait()
            raise
    return process


def _shake_hands(
    ours: socket.socket, process: subprocess.Popen[Any], program: str, listen: Callable[[int], None]
) -> None:
    ours.settimeout(HANDSHAKE_SECONDS)
    word, ancillary, _, _ = ours.recvmsg(64, socket.CMSG_SPACE(_INT_NBYTES), socket.MSG_CMSG_CLOEXEC)
    if word == b"nested":
        raise AlreadySupervised
    if word != b"listener" or not ancillary:
        raise errors.SevKvmError(
            f"the launcher of {program} ended (exit status {process.wait(HANDSHAKE_SECONDS)})",
            help="its own message stands above; does this kernel have seccomp user notification (5.0)?",
        )
    (fd,) = array.array("i", ancillary[0][2][:_INT_NBYTES])
    listen(fd)
    ours.send(b"k")
    failed = ours.recv(64)
    if failed:
        process.wait(HANDSHAKE_SECONDS)
        raise OSError(int(failed), os.strerror(int(failed)), program)
