"""An sshd of our own on loopback: own port, own keys, no password, one user; ended at the end.

with sshd(tmp_path) as far:
    subprocess.run(["ssh", *far.options, "127.0.0.1", "true"])
"""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

_PROGRAM = Path("/usr/sbin/sshd")
_PRIVILEGE_SEPARATION = Path("/run/sshd")  # compiled into Debian's; its init script makes it
_COME_UP_SECONDS = 20.0
_CONFIG = """
ListenAddress 127.0.0.1:{port}
HostKey {directory}/host_key
AuthorizedKeysFile {directory}/authorized_keys
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
AllowUsers {user}
X11Forwarding no
AllowTcpForwarding no
PrintMotd no
"""


@dataclass(frozen=True)
class Sshd:
    """``settings``: what ssh must be told with ``-o``."""

    port: int
    settings: tuple[str, ...]

    @property
    def options(self) -> list[str]:
        """For ssh's command line."""
        return ["-p", str(self.port), *(word for each in self.settings for word in ("-o", each))]


def require_sshd() -> None:
    """Skip the test, saying why, where there is no OpenSSH."""
    for program, package in (("ssh", "openssh-client"), ("ssh-keygen", "openssh-client")):
        if shutil.which(program) is None:
            pytest.skip(f"{program} not installed (Debian: apt install {package})")
    if not _PROGRAM.exists():
        pytest.skip(f"{_PROGRAM} not installed (Debian: apt install openssh-server)")
    if os.geteuid() == 0:
        _PRIVILEGE_SEPARATION.mkdir(mode=0o755, exist_ok=True)


def _free_port() -> int:
    with socket.socket() as any_port:
        any_port.bind(("127.0.0.1", 0))
        port: int = any_port.getsockname()[1]
        return port


@contextmanager
def sshd(directory: Path) -> Iterator[Sshd]:
    """Start it, wait until it answers, end it. Skips where there is none."""
    require_sshd()
    for name in ("host_key", "key"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(directory / name)],
            check=True,
            timeout=30,
        )
    shutil.copy(directory / "key.pub", directory / "authorized_keys")
    port = _free_port()
    host_key = " ".join((directory / "host_key.pub").read_text().split()[:2])
    (directory / "known_hosts").write_text(f"[127.0.0.1]:{port} {host_key}\n[localhost]:{port} {host_key}\n")
    config = directory / "sshd_config"
    config.write_text(_CONFIG.format(port=port, directory=directory, user=getpass.getuser()))
    settings = (
        *(f"IdentityFile={directory / 'key'}", "IdentitiesOnly=yes", "BatchMode=yes"),
        *(f"UserKnownHostsFile={directory / 'known_hosts'}", "GlobalKnownHostsFile=/dev/null"),
        *("StrictHostKeyChecking=yes", "AddressFamily=inet", f"User={getpass.getuser()}"),
    )
    with (directory / "sshd.log").open("wb") as log:
        process = subprocess.Popen(
            [_PROGRAM, "-f", config, "-D", "-e"], stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        _wait_until_it_answers(process, port, directory / "sshd.log")
        yield Sshd(port, settings)
    finally:
        process.terminate()
        process.wait(20)


def _wait_until_it_answers(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + _COME_UP_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
                if connection.recv(8).startswith(b"SSH-2.0"):
                    return
        except OSError:
            time.sleep(0.05)
    raise AssertionError(f"sshd did not come up: {log.read_text(errors='replace')}")
