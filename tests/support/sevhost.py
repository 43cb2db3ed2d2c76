"""SEV hosts for tests: pretended on the real KVM and on the stand-in, or, if asked for, this machine.

with sev_host() as host, lab_guest(policy=0, popen=host.popen) as guest:
    ...                      # a SevHost; with `pytest --hardware` the machine itself, or a skip that says why not
"""

from __future__ import annotations

from typing import Any, TypeAlias

import pytest

from sevkvm.lab.cpuid import host_cbit_position
from sevkvm.shim import hardware
from sevkvm.shim.availability import is_supervised, why_unavailable
from sevkvm.shim.faults import Faults
from sevkvm.shim.hardware import HardwareHost
from sevkvm.shim.supervisor import SevHost

NO_WRITE = "it changes a guest, through DBG_ENCRYPT: --hardware-write lets it do so on hardware"

Host: TypeAlias = SevHost | HardwareHost


def sev_host(**options: Any) -> Host:
    """``SevHost(**options)``, for a ``with``; hardware in its place where it was asked for and can be that."""
    if not hardware.wanted():
        return SevHost(**options)
    if reason := hardware.why_unavailable() or hardware.why_not(**options):
        pytest.skip(reason)
    return HardwareHost(pytest.skip)


def strictest_host(**options: Any) -> Host:
    """:func:`sev_host` with a kernel that has every mistake of its age; of hardware, whichever kernel there is."""
    return sev_host(**options) if hardware.wanted() else sev_host(generation="old", **options)


def host_cbit_pos() -> int:
    """Where encrypted guests of tests have their C-bit: 51, or on hardware where this processor has it."""
    if hardware.wanted() and hardware.why_unavailable() is None:
        return host_cbit_position()
    return 51


def require_write() -> None:
    """Skip the test on hardware unless a guest may be written to there."""
    if hardware.wanted() and not hardware.may_write():
        pytest.skip(NO_WRITE)


def require_moving(host: Host) -> None:
    """Skip the test, saying why, where encrypted guests do not really run."""
    if isinstance(host, SevHost):
        pytest.skip("encrypted guests never run on a pretend host; this one is to move, and does on hardware")
    if is_supervised():
        pytest.skip("the hardware of this run is a `sevkvm shim` around it, where encrypted guests never run")


def require_notification() -> None:
    """Skip the test, saying why, where no program can be run on a SEV host."""
    require_kvm_mode("auto")


def require_kvm_mode(kvm: str) -> None:
    """Skip the test where there can be no SEV host over this KVM."""
    reason = hardware.why_not(kvm) if hardware.wanted() else why_unavailable(kvm)
    if reason:
        pytest.skip(reason)


def commands(host: Host) -> list[str]:
    """The SEV commands so far, by their names; none from hardware, which keeps no log."""
    return host.log.names() if isinstance(host, SevHost) else []


def notes(host: Host) -> list[str]:
    """What the pretend kernel has done wrong, as kernels of its generation do; hardware would not tell."""
    if not isinstance(host, SevHost):
        return []
    return [note for record in host.log.records for note in record.notes]


def heal(host: Host) -> None:
    """From now on nothing fails that a test has made fail."""
    if isinstance(host, SevHost):
        host.kernel.firmware.faults = Faults()
