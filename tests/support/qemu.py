"""Unmodified QEMU processes for tests: private directory, bounded waits, killed at the end.

    with qemu(ram="64M") as vmm:
        vmm.hmp("info status")

``qmp_path`` is left free for the program under test (QEMU serves one client a socket); the test talks
through a second socket of its own.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from sevkvm import native
from sevkvm.abi.sev import CPUID_EBX_CBIT_MASK, CPUID_LEAF
from tests.support.qmp import QmpClient, QmpError

PROGRAM = "qemu-system-x86_64"
# What libvirt passes by default; a forbidden system call then kills QEMU.
SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"

Popen = Callable[..., "subprocess.Popen[bytes]"]


def require_qemu() -> None:
    """Skip the test, saying why, where there is no QEMU."""
    if shutil.which(PROGRAM) is None:
        pytest.skip(f"{PROGRAM} not installed (Debian: apt install qemu-system-x86)")


def require_kvm() -> None:
    """Skip the test, saying why, where /dev/kvm cannot be used."""
    if not Path("/dev/kvm").exists():
        pytest.skip("no /dev/kvm")
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip("/dev/kvm may not be opened by this user")


def require_kvm_qemu() -> None:
    """Skip the test unless QEMU can run on /dev/kvm."""
    require_kvm()
    require_qemu()


@dataclass
class QemuVmm:
    """A running QEMU. ``pid`` is QEMU itself, also when a supervisor started it."""

    process: subprocess.Popen[bytes]
    pid: int
    directory: Path
    monitor: QmpClient
    argv: list[str] = field(repr=False)

    @property
    def qmp_path(self) -> str:
        """A QMP socket that nobody uses yet."""
        return str(self.directory / "qmp.sock")

    def hmp(self, line: str) -> str:
        """What the human monitor prints."""
        return self.monitor.hmp(line)

    def execute(self, command: str, **arguments: Any) -> Any:
        """A QMP command's ``return``."""
        return self.monitor.execute(command, **arguments)

    def fds(self, target: str) -> list[int]:
        """Descriptors whose /proc link is ``target``, ascending."""
        found = []
        for link in Path(f"/proc/{self.pid}/fd").iterdir():
            try:
                if str(link.readlink()) == target:
                    found.append(int(link.name))
            except FileNotFoundError:
                continue  # closed since we listed it
        return sorted(found)

    @property
    def vm_fd(self) -> int:
        """The one VM descriptor."""
        (fd,) = self.fds("anon_inode:kvm-vm")
        return fd

    def vcpu_fd(self, index: int) -> int:
        """The descriptor of vCPU ``index``."""
        (fd,) = self.fds(f"anon_inode:kvm-vcpu:{index}")
        return fd

    def gpa2hva(self, gpa: int) -> int:
        """Where QEMU keeps ``gpa``, in its own words."""
        answer = self.hmp(f"gpa2hva 0x{gpa:x}")
        match = re.search(r" is (0x[0-9a-f]+)", answer)
        assert match, answer
        return int(match.group(1), 16)

    def stderr(self) -> str:
        """What QEMU has complained about so far."""
        return (self.directory / "stderr").read_text(errors="replace")

    def close(self) -> None:
        """Kill it and wait for its end; the directory goes as well. Safe to call twice."""
        self.monitor.close()
        _end(self.process, self.pid)
        shutil.rmtree(self.directory, ignore_errors=True)


def qemu_argv(
    directory: Path,
    *,
    accel: str = "kvm",
    machine: str = "q35",
    ram: str = "64M",
    cpus: int = 1,
    memfd: bool = False,
    ram_file: Path | None = None,
    sev_policy: int | None = None,
    cbitpos: int | None = None,
    sev_options: str = "",
    sandbox: bool = False,
    stopped: bool = True,
    extra: Sequence[str] = (),
) -> list[str]:
    """The command line. ``cbitpos``: by default this processor's, which QEMU compares with; 0 where it has none."""
    if cbitpos is None:
        cbitpos = native.cpuid(CPUID_LEAF)[1] & CPUID_EBX_CBIT_MASK
    options = [machine]
    argv = [PROGRAM, "-nodefaults", "-no-user-config", "-display", "none", "-accel", accel]
    argv += ["-name", "sevkvm-test,debug-threads=on", "-m", ram, "-smp", str(cpus)]
    argv += ["-pidfile", str(directory / "pid")]
    for name in ("qmp.sock", "control.sock"):
        argv += ["-qmp", f"unix:{directory / name},server=on,wait=off"]
    if memfd:
        argv += ["-object", f"memory-backend-memfd,id=ram0,size={ram},share=on"]
        options.append("memory-backend=ram0")
    if ram_file is not None:
        argv += ["-object", f"memory-backend-file,id=ram0,size={ram},share=on,mem-path={ram_file}"]
        options.append("memory-backend=ram0")
    if sev_policy is not None:
        sev = f"sev-guest,id=sev0,cbitpos={cbitpos},reduced-phys-bits=1,policy=0x{sev_policy:x}"
        sev += f",{sev_options}" if sev_options else ""
        argv += ["-object", sev]
        options.append("confidential-guest-support=sev0")
    argv += ["-machine", ",".join(options)]
    if sandbox:
        argv += ["-sandbox", SANDBOX]
    if stopped:
        argv.append("-S")
    return argv + list(extra)


def start_qemu(*, popen: Popen | None = None, timeout: float = 20.0, **options: Any) -> QemuVmm:
    """Start QEMU and wait until its monitor answers; see :func:`qemu_argv` for the options.

    ``popen`` starts the argv somewhere else: ``SevHost.popen`` puts it on a pretend SEV host.
    """
    directory = Path(tempfile.mkdtemp(prefix="sevkvm-qemu-"))
    argv = qemu_argv(directory, **options)
    process: subprocess.Popen[bytes] | None = None
    try:
        process = _start(argv, directory, popen)
        pid, monitor = _connect(process, directory, time.monotonic() + timeout)
        return QemuVmm(process, pid, directory, monitor, argv)
    except BaseException:
        if process is not None:
            _end(process, _pid_in(directory))
        shutil.rmtree(directory, ignore_errors=True)
        raise


@contextmanager
def qemu(**options: Any) -> Iterator[QemuVmm]:
    """:func:`start_qemu` for a ``with``."""
    vmm = start_qemu(**options)
    try:
        yield vmm
    finally:
        vmm.close()


def _start(argv: list[str], directory: Path, popen: Popen | None) -> subprocess.Popen[bytes]:
    if popen is None:
        popen = subprocess.Popen
        if shutil.which("setpriv"):  # a test run that is killed leaves no QEMU behind
            argv = ["setpriv", "--pdeathsig", "KILL", *argv]
    with (directory / "stderr").open("wb") as stderr:
        return popen(argv, stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr)


def _connect(process: subprocess.Popen[bytes], directory: Path, deadline: float) -> tuple[int, QmpClient]:
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        pid = _pid_in(directory)
        if pid is not None and (directory / "control.sock").exists():
            try:
                return pid, QmpClient(str(directory / "control.sock"))
            except (ConnectionError, QmpError):
                pass  # bound but not listening yet; or QEMU is about to end, which the next round sees
        time.sleep(0.01)
    log = directory / "stderr"
    said = log.read_text(errors="replace")
    raise AssertionError(f"QEMU did not come up (exit status {process.poll()}): {said}")


def _pid_in(directory: Path) -> int | None:
    try:
        return int((directory / "pid").read_text())
    except (FileNotFoundError, ValueError):
        return None


def _end(process: subprocess.Popen[bytes], pid: int | None) -> None:
    if process.poll() is None:
        for victim in {pid or process.pid, process.pid}:
            try:
                os.kill(victim, signal.SIGKILL)
            except ProcessLookupError:
                continue
    process.wait(timeout=20)
