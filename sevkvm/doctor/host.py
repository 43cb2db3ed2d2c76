"""The host, without any guest in mind."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sevkvm import errors
from sevkvm.doctor import devices, kernel, processor, rights, software

if TYPE_CHECKING:
    from sevkvm.doctor.finding import Finding
    from sevkvm.doctor.machine import Machine


def examine_host(machine: Machine) -> list[Finding]:
    """Processor, kernel, devices, our rights, software: every check of this host, worst things included."""
    answer = devices.ask_platform(machine)
    answers = not isinstance(answer, errors.SevKvmError)
    wanted = answers or processor.has_sev(machine)
    has_device = machine.owner_of(machine.dev / "sev") is not None
    return [
        processor.examine(machine, platform_answers=answers),
        kernel.examine(machine, wanted=wanted, has_sev_device=has_device),
        devices.kvm(machine),
        devices.sev(machine, answer, wanted=wanted),
        rights.examine(machine),
        software.examine(machine),
    ]
