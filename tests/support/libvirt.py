"""A libvirtd of our own with one paused domain, for tests: nobody's, in mount namespaces of its own, ended at the end.

libvirtd as root wants users and directories of its package; as another user it serves a session from directories of
our choosing. That user gets a /dev/kvm of its own, which only its mount namespace shows.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.qemu import require_kvm_qemu

_NOBODY = 65534
_DOMAIN = """
<domain type='kvm'>
  <name>{name}</name>
  <memory unit='MiB'>64</memory>
  <os><type arch='x86_64' machine='q35'>hvm</type></os>
  <devices>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
  </devices>
</domain>
"""
_START = """
set -e
mount -t tmpfs tmpfs /mnt
mknod /mnt/kvm c {major} {minor}
chmod 666 /mnt/kvm
mount --bind /mnt/kvm /dev/kvm
umount -l /mnt
exec setpriv --reuid {uid} --regid {uid} --clear-groups --pdeathsig KILL "$@"
"""


@dataclass
class Domain:
    """A paused domain. ``environment`` makes virsh, and whoever runs it, find its libvirtd.

    ``directory``: where its QEMU may write.
    """

    name: str
    pid: int
    environment: dict[str, str]
    directory: Path

    def virsh(self, *words: str) -> str:
        """What virsh prints."""
        return _run(["virsh", "--quiet", *words], self.environment)


def require_libvirt() -> None:
    """Skip the test, saying why, where there can be no libvirtd of our own."""
    require_kvm_qemu()
    for program, package in (("libvirtd", "libvirt-daemon"), ("virsh", "libvirt-clients")):
        if shutil.which(program) is None:
            pytest.skip(f"{program} not installed (Debian: apt install {package} libvirt-daemon-driver-qemu)")
    if os.geteuid() != 0:
        pytest.skip("only root can give libvirtd another user and a /dev/kvm for it")
    done = subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True)
    if done.returncode != 0:
        pytest.skip(f"no mount namespaces here: {done.stderr.decode(errors='replace').strip()}")


@contextmanager
def libvirt_domain(name: str) -> Iterator[Domain]:
    """Start virtlogd, libvirtd and the domain; end all three."""
    directory = Path(tempfile.mkdtemp(prefix="sevkvm-libvirt-"))
    daemons: list[subprocess.Popen[bytes]] = []
    pid: int | None = None
    try:
        theirs = {"PATH": os.environ["PATH"], "HOME": str(directory)}
        for kind in ("RUNTIME_DIR", "CONFIG_HOME", "CACHE_HOME", "DATA_HOME"):
            theirs[f"XDG_{kind}"] = str(directory / kind.lower())
            (directory / kind.lower()).mkdir()
            os.chown(directory / kind.lower(), _NOBODY, _NOBODY)
        directory.chmod(0o755)
        sockets = directory / "runtime_dir" / "libvirt"
        for program, socket in (("virtlogd", "virtlogd-sock"), ("libvirtd", "libvirt-sock")):
            daemons.append(_start(program, directory, theirs))
            _wait_for(sockets / socket, daemons[-1], directory)
        uri = f"qemu+unix:///session?socket={sockets / 'libvirt-sock'}"
        environment = os.environ | {"LIBVIRT_DEFAULT_URI": uri}
        description = directory / "domain.xml"
        description.write_text(_DOMAIN.format(name=name))
        _run(["virsh", "--quiet", "create", str(description), "--paused"], environment)
        pid = int((sockets / "qemu/run" / f"{name}.pid").read_text())
        yield Domain(name, pid, environment, directory / "cache_home")
        _run(["virsh", "--quiet", "destroy", name], environment)
        pid = None
    finally:
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
        for daemon in reversed(daemons):
            daemon.terminate()
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait(10)
        shutil.rmtree(directory, ignore_errors=True)


def _start(program: str, directory: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    device = Path("/dev/kvm").stat().st_rdev
    script = _START.format(major=os.major(device), minor=os.minor(device), uid=_NOBODY)
    argv = ["unshare", "-m", "sh", "-c", script, "sh", shutil.which(program) or program]
    with (directory / f"{program}.log").open("wb") as log:
        return subprocess.Popen(argv, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def _wait_for(socket: Path, daemon: subprocess.Popen[bytes], directory: Path) -> None:
    deadline = time.monotonic() + 30
    while not socket.is_socket():
        if daemon.poll() is not None or time.monotonic() > deadline:
            logs = "".join(path.read_text(errors="replace") for path in directory.glob("*.log"))
            raise RuntimeError(f"no {socket.name}: {logs[-2000:]}")
        time.sleep(0.02)


def _run(argv: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
