"""Becomes a program on a pretend SEV host: filter ourselves, hand the listener over, execute.

    python -m sevkvm.shim.launch SOCKET CONFIG -- CMD...

SOCKET is an inherited SOCK_SEQPACKET descriptor: the listener goes out over it, one byte comes back when the
supervisor listens, and it closes by the exec; or the errno of a failure goes out. CONFIG is JSON: ``filter``
(the arguments of notify.install) and ``blocked`` (the signals that the program is to start with blocked).
"""

from __future__ import annotations

import array
import json
import os
import signal
import socket
import sys
from collections.abc import Sequence

from sevkvm.shim import notify

HANDSHAKE_SECONDS = 30.0


def main(arguments: Sequence[str] | None = None) -> None:
    """Run as described above; does not return, but exits with 127 when the program cannot be executed."""
    arguments = sys.argv[1:] if arguments is None else arguments
    number, text, dashes, *command = arguments
    if dashes != "--" or not command:
        raise SystemExit("usage: python -m sevkvm.shim.launch SOCKET CONFIG -- CMD...")
    config = json.loads(text)
    with socket.socket(fileno=int(number)) as supervisor:
        supervisor.set_inheritable(False)
        supervisor.settimeout(HANDSHAKE_SECONDS)
        try:
            listener = notify.install(**config["filter"])
        except notify.AlreadySupervised:
            supervisor.send(b"nested")
            raise SystemExit(1) from None
        descriptors = array.array("i", [listener])
        supervisor.sendmsg([b"listener"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)])
        if not supervisor.recv(1):
            raise SystemExit(1)
        os.close(listener)
        signal.pthread_sigmask(signal.SIG_SETMASK, config["blocked"])
        # what the interpreter ignores for itself is not for the program
        for ignored in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(ignored, signal.SIG_DFL)
        os.environ["SEVKVM_SHIM"] = "1"  # whose seccomp filter this is, for who may not read it
        try:
            os.execvp(command[0], command)
        except OSError as error:
            supervisor.send(str(error.errno).encode())
            raise SystemExit(127) from None


if __name__ == "__main__":
    main()
