"""The machine itself in the place of a pretend SEV host, for test suites that are to run on both.

    SEVKVM_HARDWARE=1 pytest              # the fixture sev_host is then this machine, with its /dev/sev

A :class:`HardwareHost` starts programs as ``SevHost`` does. What only a pretend host can be told (faults, the mistakes
of other kernels, another C-bit) or asked (its log, the firmware's counts) ends in ``refuse``, with the reason.
"""

from __future__ import annotations

import errno
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NoReturn

from sevkvm import errors
from sevkvm.lab.cpuid import host_cbit_position

SWITCH: Final = "SEVKVM_HARDWARE"
WRITE_SWITCH: Final = "SEVKVM_HARDWARE_WRITE"
DEVICES: Final = ("/dev/kvm", "/dev/sev")
_ES_PARAMETER: Final = Path("/sys/module/kvm_amd/parameters/sev_es")
_END_SECONDS: Final = 5.0
_OFF: Final = ("", "0")

Refuse = Callable[[str], NoReturn]


def wanted() -> bool:
    """Is the hardware asked for?"""
    return os.environ.get(SWITCH, "") not in _OFF


def may_write() -> bool:
    """May a guest or the platform be changed there?"""
    return os.environ.get(WRITE_SWITCH, "") not in _OFF


def why_unavailable() -> str | None:
    """A sentence that says why no SEV guest can be launched on this machine; None if one can, as far as one sees."""
    for path in DEVICES:
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
        except OSError as error:
            said = f"{path} ({errno.errorcode.get(error.errno or 0, error.errno)})"
            return f"hardware was asked for, and this host has no usable {said}: `sevkvm doctor` tells why"
    return None


def has_es() -> bool:
    """Does this KVM launch SEV-ES guests?"""
    try:
        return _ES_PARAMETER.read_text().strip() in ("Y", "1")
    except OSError:
        return False


def why_not(
    kvm: str = "auto",
    generation: str | None = None,
    cbit_pos: int | None = None,
    trap_stat: bool = True,
    **pretended: object,
) -> str | None:
    """Why hardware cannot be the host that ``SevHost`` would make of these arguments; None if it can.

    ``generation`` "new" is what nobody has to ask for: whatever this kernel is. ``trap_stat`` means nothing there.
    """
    if kvm == "standin":
        return "hardware has a KVM: nothing stands in for it"
    if generation == "old":
        return "hardware has one kernel: it cannot be told to make the mistakes of others"
    if pretended:
        return f"hardware cannot be told its {' and '.join(sorted(pretended))}"
    if cbit_pos is not None and cbit_pos != (found := _cbit_pos()):
        return f"the C-bit of this host is {found}, not {cbit_pos}"
    return None


def _cbit_pos() -> int | None:
    try:
        return host_cbit_position()
    except errors.SevKvmError:
        return None


class HardwareHost:
    """As much of ``SevHost`` as a machine can be; a context manager that ends what it has started."""

    standin: Final = False

    def __init__(self, refuse: Refuse) -> None:
        self._refuse = refuse
        self._processes: list[subprocess.Popen[Any]] = []

    @property
    def log(self) -> Any:
        """Refused: nobody writes down what programs ask of a real kernel."""
        self._refuse("hardware keeps no log of SEV commands")

    @property
    def kernel(self) -> Any:
        """Refused: the real kernel and firmware are no objects to look into."""
        self._refuse("a real kernel and firmware tell no counts, and fail when they like")

    def popen(self, argv: Sequence[str | os.PathLike[str]], **settings: Any) -> subprocess.Popen[Any]:
        """``subprocess.Popen``."""
        process = subprocess.Popen(argv, **settings)
        self._processes.append(process)
        return process

    def __enter__(self) -> HardwareHost:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End what popen started. Safe to call twice."""
        living = [process for process in self._processes if process.poll() is None]
        self._processes = []
        for process in living:
            process.terminate()
        deadline = time.monotonic() + _END_SECONDS
        for process in living:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
