"""``stop``, ``cont``, ``cpu`` and ``quit``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sevkvm.monitor.command import Command
from sevkvm.monitor.problem import CommandProblem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sevkvm.monitor.arguments import Arguments
    from sevkvm.monitor.monitor import Monitor


def stop(monitor: Monitor, given: Arguments) -> Iterator[str]:
    """Pause the guest."""
    yield monitor.control.stop()


def cont(monitor: Monitor, given: Arguments) -> Iterator[str]:
    """Let it run."""
    yield monitor.control.cont()


def cpu(monitor: Monitor, given: Arguments) -> Iterator[str]:
    """Choose the vCPU whose registers and page tables commands use."""
    index = given.numbers["index"]
    if index not in monitor.guest.vcpu_indexes:
        raise CommandProblem("invalid CPU index")
    monitor.vcpu = index
    return iter(())


def leave(monitor: Monitor, given: Arguments) -> Iterator[str]:
    """End this conversation. QEMU's own would end the guest."""
    monitor.over = True
    return iter(())


COMMANDS: Final = (
    Command("cont|c", "", "", "resume emulation", cont),
    Command("cpu", "index:i", "index", "set the default CPU", cpu),
    Command("quit|q", "", "", "leave the monitor; the guest goes on", leave),
    Command("stop|s", "", "", "stop emulation", stop),
)
